#include "coppice/eval/multiple_choice.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/nn/host.h"

// B sequences, S positions.

namespace coppice::eval {
namespace {

constexpr int64_t kTokensABatch = 2048;

Question question_of(const Json& json, const std::string& where) {
  const auto refuse = [&](std::string_view problem) {
    throw Error(ErrorCode::kFormat,
                cat(where, ": ", problem, R"(; wanted {"context": "...", "choices": ["...", "..."], "answer": 0})"));
  };
  const Json *context = json.find("context"), *choices = json.find("choices"), *answer = json.find("answer");
  if (!context || !context->is_string()) refuse("'context' is missing or not text");
  if (!choices || !choices->is_array()) refuse("'choices' is missing or not a list");
  if (!answer || answer->kind() != Json::Kind::kInt) refuse("'answer' is missing or not an integer");
  Question out{.context = context->as_string()};
  for (const Json& choice : choices->items()) {
    if (!choice.is_string() || choice.as_string().empty()) refuse("a choice that is not text");
    out.choices.push_back(choice.as_string());
  }
  if (out.choices.size() < 2) refuse("fewer than two choices");
  if (answer->as_int() < 0 || answer->as_int() >= static_cast<int64_t>(out.choices.size())) {
    refuse(cat("answer ", answer->as_int(), " of ", out.choices.size(), " choices"));
  }
  out.answer = static_cast<size_t>(answer->as_int());
  return out;
}

// The characters that Python's str.rstrip removes, in UTF-8.
size_t length_without_trailing_space(std::string_view text) {
  constexpr std::array<std::string_view, 29> kSpaces = {" ",
                                                        "\t",
                                                        "\n",
                                                        "\r",
                                                        "\v",
                                                        "\f",
                                                        "\x1c",
                                                        "\x1d",
                                                        "\x1e",
                                                        "\x1f",
                                                        "\xc2\x85",
                                                        "\xc2\xa0",
                                                        "\xe1\x9a\x80",
                                                        "\xe2\x80\x80",
                                                        "\xe2\x80\x81",
                                                        "\xe2\x80\x82",
                                                        "\xe2\x80\x83",
                                                        "\xe2\x80\x84",
                                                        "\xe2\x80\x85",
                                                        "\xe2\x80\x86",
                                                        "\xe2\x80\x87",
                                                        "\xe2\x80\x88",
                                                        "\xe2\x80\x89",
                                                        "\xe2\x80\x8a",
                                                        "\xe2\x80\xa8",
                                                        "\xe2\x80\xa9",
                                                        "\xe2\x80\xaf",
                                                        "\xe2\x81\x9f",
                                                        "\xe3\x80\x80"};
  for (bool found = true; found;) {
    found = false;
    for (const auto space : kSpaces) {
      if (!text.ends_with(space)) continue;
      text.remove_suffix(space.size());
      found = true;
    }
  }
  return text.size();
}

size_t characters(std::string_view utf8) {
  return static_cast<size_t>(std::ranges::count_if(utf8, [](char c) { return (c & 0xc0) != 0x80; }));
}

// Tokens; the last `scored` of them are the choice.
struct Sequence {
  std::vector<int32_t> ids;
  size_t scored = 0;
  size_t question = 0, choice = 0;
};

std::vector<Sequence> sequences_of(const std::vector<Question>& questions, const data::Tokenizer& tokenizer,
                                   const std::optional<LeadingToken>& leading, size_t positions) {
  std::vector<std::string> texts;
  for (const Question& q : questions) {
    texts.push_back(q.context.substr(0, length_without_trailing_space(q.context)));
    for (const auto& choice : q.choices) texts.push_back(cat(q.context, " ", choice));
  }
  const auto ids = tokenizer.encode(std::vector<std::string_view>(texts.begin(), texts.end()));
  std::vector<Sequence> out;
  size_t next = 0;
  for (size_t q = 0; q < questions.size(); ++q) {
    const size_t context = ids[next++].size();
    const bool leads = leading && !questions[q].context.starts_with(leading->text);
    for (size_t c = 0; c < questions[q].choices.size(); ++c) {
      Sequence s{.ids = ids[next++], .question = q, .choice = c};
      const auto refuse = [&](const std::string& problem) {
        throw Error(ErrorCode::kFormat, cat("question ", q + 1, ", choice ", c + 1, ": ", problem));
      };
      if (s.ids.size() <= context) refuse("has no tokens besides the context's; wanted a longer choice");
      s.scored = s.ids.size() - context;
      if (s.scored > positions) refuse(cat(s.scored, " tokens; wanted at most the model's length, ", positions));
      if (leads) s.ids.insert(s.ids.begin(), leading->id);
      if (s.scored >= s.ids.size()) {
        refuse("the context has no tokens, and the tokenizer adds none at the start; wanted a longer context");
      }
      if (s.ids.size() > positions + 1) s.ids.erase(s.ids.begin(), s.ids.end() - static_cast<int64_t>(positions + 1));
      out.push_back(std::move(s));
    }
  }
  return out;
}

// Log-likelihoods of sequences [begin, end), padded at the end to the length of the first, which is the longest.
void score(const nn::FittedDecoder& model, std::span<const Sequence> sequences,
           std::vector<std::vector<double>>& log_likelihoods) {
  const auto rows = static_cast<int64_t>(sequences.size());
  const auto length = rows > 0 ? static_cast<int64_t>(sequences.front().ids.size()) - 1 : 1;
  const auto tokens_BS = at::zeros({rows, length}, at::kLong), target_BS = at::full({rows, length}, -1, at::kLong);
  for (int64_t b = 0; b < rows; ++b) {
    const Sequence& s = sequences[static_cast<size_t>(b)];
    const size_t inputs = s.ids.size() - 1;
    std::ranges::copy(std::span(s.ids).first(inputs), nn::token_row(tokens_BS, b).begin());
    const auto target = nn::token_row(target_BS, b);
    for (size_t i = inputs - s.scored; i < inputs; ++i) target[i] = s.ids[i + 1];
  }
  const auto loss_B = nn::to_host<double>(model.token_losses(tokens_BS, target_BS, {}).to(at::kDouble).sum(1));
  for (size_t b = 0; b < sequences.size(); ++b) {
    log_likelihoods[sequences[b].question][sequences[b].choice] = -loss_B[b];
  }
}

// Every likelihood from the rank that has computed it; the others have 0.
void over_ranks(const nn::Division& division, std::vector<std::vector<double>>& log_likelihoods) {
  std::vector<double> all;
  for (const auto& of_question : log_likelihoods) all.insert(all.end(), of_question.begin(), of_question.end());
  division.sum_over_ranks(all);
  auto next = all.begin();
  for (auto& of_question : log_likelihoods) {
    for (double& value : of_question) value = *next++;
  }
}

// The index of the first of the largest values.
size_t best(const std::vector<double>& values) {
  return static_cast<size_t>(std::ranges::max_element(values) - values.begin());
}

}  // namespace

std::vector<Question> read_questions(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  std::vector<Question> out;
  int64_t line = 0;
  for (const std::string& row : split(text, '\n')) {
    ++line;
    if (length_without_trailing_space(row) == 0) continue;
    const std::string where = cat(path, ": line ", line);
    Question question = question_of(Json::parse(row, where), where);
    if (length_without_trailing_space(question.context) == 0) {
      throw Error(ErrorCode::kFormat, cat(where, ": the context is empty; wanted text before the choices"));
    }
    out.push_back(std::move(question));
  }
  if (out.empty()) throw Error(ErrorCode::kFormat, cat(path, ": has no questions; wanted one per line"));
  return out;
}

double Choices::standard_error(double share) const {
  if (questions < 2) return std::numeric_limits<double>::quiet_NaN();
  return std::sqrt(share * (1 - share) / static_cast<double>(questions - 1));
}

Choices answer(const nn::FittedDecoder& model, const data::Tokenizer& tokenizer,
               const std::optional<LeadingToken>& leading, const std::vector<Question>& questions) {
  const auto positions = static_cast<size_t>(model.config().max_positions);
  auto sequences = sequences_of(questions, tokenizer, leading, positions);
  std::ranges::stable_sort(sequences, std::greater(), [](const Sequence& s) { return s.ids.size(); });
  Choices out{.questions = questions.size()};
  for (const Question& q : questions) out.log_likelihoods.emplace_back(q.choices.size());
  Progress progress("eval choices", sequences.size(), ProgressUnit::kItems);
  for (size_t begin = 0; begin < sequences.size();) {
    const auto length = static_cast<int64_t>(sequences[begin].ids.size()) - 1;
    const auto at_once = model.sequences_at_once(length, std::max<int64_t>(1, kTokensABatch / length));
    const size_t count =
        std::min(sequences.size() - begin, static_cast<size_t>(at_once * model.division().num_ranks()));
    const auto [skipped, own] = model.division().share_of(count);
    if (own > 0 || model.division().is_joint())
      score(model, std::span(sequences).subspan(begin + skipped, own), out.log_likelihoods);
    begin += count;
    progress.advance(count);
  }
  over_ranks(model.division(), out.log_likelihoods);
  for (size_t q = 0; q < questions.size(); ++q) {
    std::vector<double> normalised = out.log_likelihoods[q];
    for (size_t c = 0; c < normalised.size(); ++c) {
      if (!std::isfinite(normalised[c])) {
        throw Error(ErrorCode::kNonFinite,
                    cat("question ", q + 1, ", choice ", c + 1, ": its log-likelihood is ", normalised[c],
                        "; wanted a finite number (the model is damaged, or its training diverged)"));
      }
      normalised[c] /= static_cast<double>(characters(questions[q].choices[c]));
    }
    out.accuracy += best(out.log_likelihoods[q]) == questions[q].answer;
    out.normalised_accuracy += best(normalised) == questions[q].answer;
  }
  out.accuracy /= static_cast<double>(questions.size());
  out.normalised_accuracy /= static_cast<double>(questions.size());
  return out;
}

}  // namespace coppice::eval
