#pragma once

// Accuracy on multiple-choice questions by the likelihood of each answer.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/data/tokenizer.h"
#include "coppice/nn/fitted_decoder.h"

namespace coppice::eval {

struct Question {
  std::string context;
  std::vector<std::string> choices;
  size_t answer = 0;
};

/// JSON lines {"context": ..., "choices": [...], "answer": index}; other keys are ignored.
///
/// Throws   Error{kFormat} naming file and line: no JSON, a missing key or one of another type, an empty context or
///          choice, fewer than two choices, an answer that is none; Error{kNotFound}.
std::vector<Question> read_questions(const std::filesystem::path& path);

/// The token that a tokenizer adds before every text if transformers is asked for special tokens, such as <s>.
struct LeadingToken {
  int32_t id = 0;
  std::string text;
};
/// The leading token of a model directory, if its tokenizer.json or tokenizer_config.json defines one.
///
/// Throws   Error{kUnsupported} for special tokens in other places; Error{kFormat}.
std::optional<LeadingToken> leading_token(const std::filesystem::path& directory);

struct Choices {
  double accuracy = 0;             ///< share of questions whose correct choice has the largest log-likelihood
  double normalised_accuracy = 0;  ///< the same, by log-likelihood divided by the number of characters
  uint64_t questions = 0;
  std::vector<std::vector<double>> log_likelihoods;  ///< of every choice of every question

  /// The standard error of a share over the questions; NaN for one question.
  double standard_error(double share) const;
};

/// Computes the log-likelihood of every choice, after its context and a space. Context and choice are tokenized
/// together; the choice's tokens are those beyond the number of tokens of the context alone. Sequences longer than the
/// model's maximum length lose tokens at their start.
///
/// Ranks    collective over all ranks of the model's division, which share the sequences; all get the same answer.
/// Memory   the model and a batch of sequences.
/// Throws   Error{kFormat} for a choice without tokens of its own, or longer than the model's maximum length;
///          Error{kNonFinite} for a likelihood that is not a finite number.
/// Source   lm-evaluation-harness 0.4.13, output_type multiple_choice of a causal model: acc and acc_norm.
Choices answer(const nn::FittedDecoder& model, const data::Tokenizer& tokenizer,
               const std::optional<LeadingToken>& leading, const std::vector<Question>& questions);

}  // namespace coppice::eval
