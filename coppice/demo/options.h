#pragma once

#include <cstdint>
#include <filesystem>
#include <tuple>

#include "coppice/base/options.h"
#include "coppice/plan/plan.h"

namespace coppice::demo {

/// What the user may choose. The token budget follows from `minutes` and `seeds` alone, never from measured speed, so
/// that a seed gives the same figures anywhere on one build.
struct DemoOptions {
  std::filesystem::path out = "coppice-demo";
  std::filesystem::path text;
  double minutes = 10;
  int64_t seeds = 3, first_seed = 0;
  int64_t base_experts = 8, top_k = 2, expert_width = 32, model_dim = 64, layers = 3, vocab_size = 1024;
  plan::ExpertCount experts{"8x"};
  std::string select = "uniform";
  double growth_at = 0.4;
  int64_t threads = 0;
  bool json = false, quiet = false;

  static constexpr auto fields() {
    using O = DemoOptions;
    return std::tuple{
        field("out", &O::out, "folder for every file of the demo; one that was cut off is finished"),
        field("text", &O::text,
              "your own text: one sub-folder or file per domain (default: documentation from Debian packages)"),
        field("minutes", &O::minutes, "time budget on two cores; sets the number of tokens"),
        field("seeds", &O::seeds, "repetitions with another seed; eta needs at least two"),
        field("first-seed", &O::first_seed, "seed of the first repetition"),
        field("base-experts", &O::base_experts, "experts of the small model"),
        field("experts", &O::experts, "experts after growth: 2x, 1.5x or 12"),
        field("top-k", &O::top_k, "experts a token"),
        field("expert-width", &O::expert_width, "intermediate units of an expert"),
        field("dim", &O::model_dim, "model dimension"),
        field("layers", &O::layers, "decoder layers, each with experts"),
        field("vocab-size", &O::vocab_size, "ids of the tokenizer it trains"),
        field(
            "select", &O::select,
            "which experts get more copies: uniform (all the same number), or a method of `coppice list select`, which "
            "ranks experts by their gradients"),
        field("growth-at", &O::growth_at, "share of the token budget before the expansion"),
        field("threads", &O::threads,
              "CPU threads; models train side by side, one thread each (0: at most that), more only if asked for"),
        field("json", &O::json, "the results as one JSON object on stdout"),
        field("quiet", &O::quiet, "no log lines")};
  }
};

}  // namespace coppice::demo
