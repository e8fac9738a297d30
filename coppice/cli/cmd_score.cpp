#include <iostream>
#include <optional>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/options.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/threads.h"
#include "coppice/data/tokenizer.h"
#include "coppice/io/atomic_file.h"
#include "coppice/score/score.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary = "the utility of every expert, from calibration tokens";

struct ScoreOptions {
  std::filesystem::path model;
  std::vector<std::filesystem::path> tokens;
  std::filesystem::path out;
  uint64_t batches = 10, batch_tokens = 8192, seed = 0;
  int64_t sequence_length = 256;
  std::string dtype = "f32";
  std::optional<uint64_t> threads;
  bool json = false;

  static constexpr auto fields() {
    using O = ScoreOptions;
    return std::tuple{operand("MODEL", &O::model, "model directory in Hugging Face format"),
                      operand("TOKENS", &O::tokens, "token files (.bin/.idx prefixes) to calibrate on"),
                      field("out", &O::out, "the scores, for `coppice expand --scores`; replaced if it exists"),
                      field("batches", &O::batches, "calibration batches"),
                      field("batch-tokens", &O::batch_tokens, "tokens a batch"),
                      field("sequence-length", &O::sequence_length, "tokens a window"),
                      field("seed", &O::seed, "of the choice of windows"),
                      field("dtype", &O::dtype, "compute: f32 or bf16"),
                      field("threads", &O::threads, "CPU threads (default: all cores)"),
                      field("json", &O::json, kJsonHelp)};
  }
};

upcycle::Scores score_files(const ScoreOptions& o) {
  const auto refuse = [](const std::string& message) { throw Error(ErrorCode::kUsage, message); };
  if (o.out.empty()) refuse("out: not given; wanted the file to write, such as --out scores.json");
  if (o.dtype != "f32" && o.dtype != "bf16") refuse(cat("dtype: '", o.dtype, "'; wanted f32 or bf16"));
  const auto model = families::open_model(o.model);
  std::vector<data::TokenFile> files;
  const std::string digest = data::tokenizer_digest(o.model);
  for (const auto& path : o.tokens) {
    files.push_back(data::TokenFile::open(path));
    files.back().check_vocabulary(model.config.vocab_size, digest);
  }
  return score::score_model(model, files,
                            {.batches = o.batches,
                             .batch_tokens = o.batch_tokens,
                             .sequence_length = o.sequence_length,
                             .seed = o.seed,
                             .f32 = o.dtype == "f32"});
}

int run(std::span<const std::string_view> args) {
  const auto o = parse<ScoreOptions>("score", kSummary, args);
  use_threads(o.threads);
  const auto scores = score_files(o);
  const Json json = scores.to_json();
  io::write_file_atomically(o.out, json.dump(1) + "\n");
  if (o.json) {
    std::cout << json.dump(2) << "\n";
    return 0;
  }
  std::vector<std::string> names;
  for (const auto& [name, values] : scores.metrics) names.push_back(name);
  std::cout << cat("wrote ", o.out, ": ", scores.metrics.begin()->second.fc1.sum.size(), " layers of ", scores.experts,
                   " experts over ", count_text(static_cast<double>(scores.tokens_seen)),
                   " tokens\nmetrics: ", join(names), "\n");
  return 0;
}

}  // namespace

extern const Command kScore;
const Command kScore{"score", kSummary, run};

}  // namespace coppice::cli
