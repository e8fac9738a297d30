#include <iostream>

#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/ranks.h"
#include "coppice/options/options.h"
#include "coppice/report/html.h"
#include "coppice/train/run.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary = "pre-train a model, or continue to train one";

struct OutputOptions {
  bool json = false;
  static constexpr auto fields() { return std::tuple{field("json", &OutputOptions::json, kJsonHelp)}; }
};

Json to_json(const train::TrainResult& result) {
  Json out = Json::object();
  out["first_step"] = result.first_step;
  out["last_step"] = result.last_step;
  out["tokens_seen"] = result.tokens_seen;
  out["loss"] = result.loss;
  out["validation_loss"] = Json::object();
  for (const auto& [name, loss] : result.validation_loss) out["validation_loss"][name] = loss;
  out["seconds_per_step"] = result.seconds_per_step;
  out["tokens_per_s"] = result.tokens_per_s;
  out["gemm_share"] = result.gemm_share;
  out["peak_rss_bytes"] = result.peak_rss_bytes;
  out["checkpoint"] = result.checkpoint.empty() ? Json() : Json(result.checkpoint.string());
  return out;
}

void print_table(const train::TrainResult& result) {
  report::Table table{.header = {"", ""}, .rows = {}};
  table.rows = {{"steps", cat(result.first_step, " -> ", result.last_step)},
                {"tokens seen", count_text(static_cast<double>(result.tokens_seen))},
                {"training loss (last steps)", fixed_text(result.loss, 4)}};
  for (const auto& [name, loss] : result.validation_loss) {
    table.rows.push_back({"validation loss, " + name, fixed_text(loss, 4)});
  }
  if (result.seconds_per_step > 0) {
    table.rows.push_back({"time per step", duration_text(result.seconds_per_step)});
    table.rows.push_back({"tokens per second", count_text(result.tokens_per_s)});
    table.rows.push_back({"share of the GEMM bound", cat(fixed_text(100 * result.gemm_share, 0), " %")});
  }
  table.rows.push_back({"peak memory", bytes_text(result.peak_rss_bytes)});
  if (!result.checkpoint.empty()) table.rows.push_back({"checkpoint", result.checkpoint.string()});
  std::cout << report::text_table(table);
}

int run(std::span<const std::string_view> args) {
  train::TrainOptions options;
  OutputOptions output;
  auto specs = option_specs(options);
  for (auto& spec : option_specs(output)) specs.push_back(std::move(spec));
  options.given = detail::parse_options("train", kSummary, specs, args);
  const RankSettings ranks{.device = options.device,
                           .expert_parallel = options.expert_parallel,
                           .device_option = "train.device",
                           .expert_option = "parallel.expert",
                           .timeout_s = options.parallel_timeout,
                           .settings = to_toml(options),
                           .signals_end_waits = false};  // the ranks stop after the same step
  on_ranks(ranks, [&](const Ranks& rank) {
    train::TrainOptions own = options;
    own.device = rank.device;
    if (own.threads == 0) own.threads = static_cast<int64_t>(rank.threads);
    const auto result = train::train(own, {}, rank.world);
    if (!rank.is_first()) return;
    if (output.json) {
      std::cout << to_json(result).dump(2) << "\n";
    } else {
      print_table(result);
    }
  });
  return 0;
}

}  // namespace

extern const Command kTrain;
const Command kTrain{"train", kSummary, run};

}  // namespace coppice::cli
