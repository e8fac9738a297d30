#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "coppice/base/text.h"

namespace coppice::testing {

/// What the files of a made-up run say.
struct MadeRun {
  int64_t seed = 0, experts = 8, experts_after = 0;  ///< after: of the lineage of its start, where that grew
  int64_t first_step = 1, last_step = 20, batch_tokens = 100;
  double loss = 3.0, tokens_per_s = 1000;
  bool from_model = false;
};

/// A run folder with config.toml, metrics.jsonl and, where it grew, the lineage of a checkpoint.
inline void write_run(const std::filesystem::path& directory, const MadeRun& run) {
  std::filesystem::create_directories(directory);
  std::ofstream config(directory / "config.toml");
  config << "[model]\n";
  if (run.from_model || run.experts_after > 0) config << "path = \"elsewhere\"\n";
  config << "experts = " << run.experts << "\n[train]\nseed = " << run.seed << "\nbatch_tokens = " << run.batch_tokens
         << "\n";
  std::ofstream metrics(directory / "metrics.jsonl");
  for (int64_t step = run.first_step; step <= run.last_step; ++step) {
    metrics << "{\"step\": " << step << ", \"loss\": " << run.loss + 1
            << ", \"tokens_seen\": " << step * run.batch_tokens << ", \"tokens_per_s\": " << run.tokens_per_s;
    if (step == run.last_step)
      metrics << ", \"validation/a\": " << run.loss - 0.5 << ", \"validation/b\": " << run.loss + 0.5;
    metrics << "}\n";
  }
  if (run.experts_after > 0 || run.from_model) {
    const auto checkpoint = directory / "checkpoints" / cat("step-", run.last_step);
    std::filesystem::create_directories(checkpoint);
    const int64_t experts = run.experts_after > 0 ? run.experts_after : run.experts;
    std::ofstream(checkpoint / "config.json") << cat(
        "{\"model_type\": \"mixtral\", \"vocab_size\": 64, \"hidden_size\": 16, \"intermediate_size\": 32, "
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 2, \"num_experts_per_tok\": 2, "
        "\"num_local_experts\": ",
        experts, "}");
    if (run.experts_after > 0) {
      std::vector<std::string> parents;
      for (int64_t e = 0; e < run.experts_after; ++e) parents.push_back(cat(e % run.experts));
      std::ofstream(checkpoint / "coppice.json")
          << cat("{\"coppice_lineage\": 1, \"steps\": [{\"command\": \"expand\", \"version\": \"0\", \"seed\": 0, "
                 "\"source_digest\": \"0\", \"order\": \"append\", \"methods\": {}, \"experts\": [",
                 run.experts, ", ", run.experts_after, "], \"parents\": {\"0\": [", join(parents), "], \"1\": [",
                 join(parents), "]}}]}");
    }
  }
}

/// Trunk, control, upcycled and scratch of one seed: 8 -> 16 experts at step 10 of 20.
inline void write_arms(const std::filesystem::path& directory, int64_t seed, double control, double upcycled,
                       double fixed) {
  write_run(directory / "trunk", {.seed = seed, .last_step = 10, .loss = 4});
  write_run(directory / "control", {.seed = seed, .first_step = 11, .loss = control, .from_model = true});
  write_run(directory / "upcycled",
            {.seed = seed, .experts_after = 16, .first_step = 11, .loss = upcycled, .tokens_per_s = 800});
  write_run(directory / "scratch", {.seed = seed, .experts = 16, .loss = fixed, .tokens_per_s = 500});
}

}  // namespace coppice::testing
