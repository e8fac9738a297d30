#include <cmath>
#include <iostream>
#include <optional>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/options.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/threads.h"
#include "coppice/data/tokenizer.h"
#include "coppice/eval/perplexity.h"
#include "coppice/report/html.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary = "loss and perplexity of a model on token files";

struct EvalOptions {
  std::filesystem::path model;
  std::vector<std::filesystem::path> tokens;
  int64_t sequence_length = 256, batch = 8;
  uint64_t max_tokens = 0;
  std::string dtype = "f32";
  std::optional<uint64_t> threads;
  bool reset_attention = false, json = false;

  static constexpr auto fields() {
    using O = EvalOptions;
    return std::tuple{operand("MODEL", &O::model, "model directory in Hugging Face format"),
                      field("tokens", &O::tokens, "token files (.bin/.idx prefixes); repeat or separate by commas"),
                      field("sequence-length", &O::sequence_length, "tokens a window; each is predicted from its own"),
                      field("reset-attention", &O::reset_attention,
                            "no token sees beyond the start of its document, as with train --data.reset_attention"),
                      field("batch", &O::batch, "windows a forward pass"),
                      field("max-tokens", &O::max_tokens, "tokens of each file that are used, 0 for all"),
                      field("dtype", &O::dtype, "compute: f32 or bf16"),
                      field("threads", &O::threads, "CPU threads (default: all cores)"),
                      field("json", &O::json, kJsonHelp)};
  }
};

struct FileLoss {
  std::string name;
  eval::TokenLoss loss;
};

void check(const EvalOptions& o, const families::Model& model) {
  const auto refuse = [](const std::string& message) { throw Error(ErrorCode::kUsage, message); };
  if (o.tokens.empty()) refuse("tokens: none given; wanted one token file or more (make them with `coppice tokenize`)");
  if (o.dtype != "f32" && o.dtype != "bf16") refuse(cat("dtype: '", o.dtype, "'; wanted f32 or bf16"));
  if (o.batch < 1) refuse(cat("batch: ", o.batch, "; wanted 1 or more"));
  if (o.sequence_length < 1 || o.sequence_length > model.config.max_positions) {
    refuse(cat("sequence-length: ", o.sequence_length, "; wanted 1 to the model's ", model.config.max_positions));
  }
}

std::vector<FileLoss> losses(const EvalOptions& o) {
  const auto model = families::open_model(o.model);
  check(o, model);
  std::vector<data::TokenFile> files;
  const std::string digest = data::tokenizer_digest(o.model);
  for (const auto& path : o.tokens) {
    files.push_back(data::TokenFile::open(path));
    files.back().check_vocabulary(model.config.vocab_size, digest);
  }
  const auto dtype = o.dtype == "bf16" ? nn::ComputeDtype::kBf16 : nn::ComputeDtype::kF32;
  const auto decoder = nn::Decoder::load(model, dtype);
  std::vector<FileLoss> out;
  for (const auto& file : files) {
    const eval::LossSettings settings{o.sequence_length, o.batch, o.max_tokens, o.reset_attention};
    out.push_back({file.path().filename().string(), eval::token_loss(decoder, file, settings)});
  }
  return out;
}

// The mean over all tokens of all files.
eval::TokenLoss overall(const std::vector<FileLoss>& files) {
  eval::TokenLoss out;
  for (const auto& [name, loss] : files) {
    out.loss += loss.loss * static_cast<double>(loss.tokens);
    out.tokens += loss.tokens;
  }
  out.loss /= static_cast<double>(out.tokens);
  return out;
}

Json to_json(const eval::TokenLoss& loss) {
  Json out = Json::object();
  out["loss"] = loss.loss;
  out["perplexity"] = loss.perplexity();
  out["tokens"] = loss.tokens;
  return out;
}

Json to_json(const std::vector<FileLoss>& files) {
  Json out = to_json(overall(files));
  Json list = Json::array();
  for (const auto& [name, loss] : files) {
    Json file = Json::object({{"name", Json(name)}});
    const Json numbers = to_json(loss);
    for (const auto& [key, value] : numbers.members()) file[key] = value;
    if (std::isfinite(loss.loss_variance)) file["standard_error"] = std::sqrt(loss.loss_variance);
    list.push_back(std::move(file));
  }
  out["files"] = std::move(list);
  return out;
}

void print_table(const std::vector<FileLoss>& files) {
  report::Table table{.header = {"tokens of", "loss (nats)", "perplexity", "tokens"}, .rows = {}};
  const auto add = [&](const std::string& name, const eval::TokenLoss& loss) {
    table.rows.push_back({name, fixed_text(loss.loss, 4), number_text(loss.perplexity()), cat(loss.tokens)});
  };
  for (const auto& [name, loss] : files) add(name, loss);
  if (files.size() > 1) add("all", overall(files));
  std::cout << report::text_table(table);
}

int run(std::span<const std::string_view> args) {
  const auto o = parse<EvalOptions>("eval", kSummary, args);
  use_threads(o.threads);
  const auto files = losses(o);
  if (o.json) {
    std::cout << to_json(files).dump(2) << "\n";
  } else {
    print_table(files);
  }
  return 0;
}

}  // namespace

extern const Command kEval;
const Command kEval{"eval", kSummary, run};

}  // namespace coppice::cli
