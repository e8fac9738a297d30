#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <tuple>

#include "coppice/options/device_option.h"
#include "coppice/options/options.h"
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
  std::string device = "cpu";
  bool json = false, quiet = false;

  static constexpr auto fields() {
    using O = DemoOptions;
    return std::tuple{
        field("out", &O::out, "directory for all files of the demo; an interrupted demo is continued"),
        field("text", &O::text,
              "your own text: one subdirectory or file per domain (default: documentation from Debian packages)"),
        field("minutes", &O::minutes, "time budget on two cores; sets the number of tokens"),
        field("seeds", &O::seeds, "number of repetitions with different seeds; eta needs at least two"),
        field("first-seed", &O::first_seed, "seed of the first repetition"),
        field("base-experts", &O::base_experts, "experts of the small model, per layer"),
        field("experts", &O::experts, "experts after the expansion: 2x, 1.5x or 12"),
        field("top-k", &O::top_k, "experts per token"),
        field("expert-width", &O::expert_width, "intermediate width of an expert"),
        field("dim", &O::model_dim, "model dimension"),
        field("layers", &O::layers, "number of decoder layers, each with experts"),
        field("vocab-size", &O::vocab_size, "vocabulary size of the tokenizer that it trains"),
        field("select", &O::select,
              "which experts get more copies: uniform (all the same number), or a rule of `coppice list selections`; "
              "rules that need scores rank experts by their gradients"),
        field("growth-at", &O::growth_at, "share of the token budget before the expansion"),
        field("device", &O::device, kDeviceHelp),
        field(
            "threads", &O::threads,
            "CPU threads; models train at the same time with one thread each, so 0 means no more threads than models"),
        field("json", &O::json, "print the results as one JSON object"),
        field("quiet", &O::quiet, "print no log lines")};
  }
};

}  // namespace coppice::demo
