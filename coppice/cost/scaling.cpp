#include "coppice/cost/scaling.h"

#include <array>
#include <cmath>
#include <utility>

#include "coppice/base/text.h"
#include "coppice/report/html.h"

namespace coppice::cost {
namespace {

constexpr double kSame = 0.005;  // a relative difference of simulated steps below which there is nothing to explain

struct Part {
  const char* name;
  const char* key;
  double SimulatedStep::* value;
};
constexpr std::array<Part, 5> kParts = {{{"compute", "compute", &SimulatedStep::compute_s},
                                         {"optimizer", "optimizer", &SimulatedStep::optimizer_s},
                                         {"all-to-all", "all_to_all", &SimulatedStep::all_to_all_s},
                                         {"gradients", "reduce", &SimulatedStep::reduce_s},
                                         {"values", "gather", &SimulatedStep::gather_s}}};

// Milliseconds below 10 s, because the parts of one step differ by orders of magnitude.
std::string time_text(double seconds) {
  if (seconds == 0) return "0";
  if (seconds >= 10) return duration_text(seconds);
  const double ms = 1e3 * seconds;
  return cat(fixed_text(ms, ms < 9.95 ? 1 : 0), " ms");
}

std::string reason(const ScalingRow& row, int64_t experts_before, int64_t experts_after) {
  const double more = row.after.total_s - row.before.total_s;
  const std::string start = cat(row.gpus, row.gpus == 1 ? " GPU: " : " GPUs: ");
  if (std::fabs(more) < kSame * row.before.total_s)
    return cat(start, "a step takes as long with ", experts_after, " experts as with ", experts_before, ".");
  std::vector<std::string> shares;
  for (const Part& part : kParts) {
    const double share = (row.after.*part.value - row.before.*part.value) / more;
    if (std::fabs(share) >= kSame) shares.push_back(cat(part.name, " ", percent(share, 0)));
  }
  return cat(start, "a step takes ", fixed_text(row.ratio(), 2), " times as long with ", experts_after,
             " experts as with ", experts_before, ". The difference of ", time_text(std::fabs(more)),
             " consists of: ", join(shares), ".");
}

std::vector<std::string> cells_of(const ScalingRow& row, int64_t experts, const SimulatedStep& step,
                                  const Traffic& traffic, int64_t expert_parallel) {
  std::vector<std::string> cells = {cat(row.gpus), cat(experts), cat(expert_parallel)};
  for (const Part& part : kParts) cells.push_back(time_text(step.*part.value));
  cells.push_back(time_text(step.total_s));
  cells.push_back(time_text(step.hidden_reduce_s + step.hidden_gather_s));
  cells.push_back(bytes_text(traffic.total()));
  return cells;
}

Json step_json(const SimulatedStep& step, const Traffic& traffic, int64_t expert_parallel) {
  Json out = Json::object({{"expert_parallel", expert_parallel}, {"seconds", step.total_s}});
  for (const Part& part : kParts) out[part.key] = step.*part.value;
  out["hidden_reduce"] = step.hidden_reduce_s;
  out["hidden_gather"] = step.hidden_gather_s;
  out["sent_bytes"] = Json::object({{"reduce_scatter", traffic.reduce_scatter},
                                    {"all_gather", traffic.all_gather},
                                    {"all_to_all", traffic.all_to_all}});
  return out;
}

Json link_json(const Link& link) {
  return Json::object({{"bytes_per_s", link.bytes_per_s}, {"latency_s", link.latency_s}});
}

}  // namespace

std::vector<std::string> Scaling::reasons(int64_t experts_before, int64_t experts_after) const {
  std::vector<std::string> out;
  for (const ScalingRow& row : rows) {
    out.push_back(reason(row, experts_before, experts_after));
    if (fits(row.state_after)) continue;
    const bool neither = !fits(row.state_before);
    out.back() +=
        cat(" It does not fit: the training state of a GPU with ", neither ? experts_before : experts_after,
            " experts takes ", bytes_text(neither ? row.state_before : row.state_after), " without activations.");
  }
  return out;
}

std::string Scaling::to_text(int64_t experts_before, int64_t experts_after) const {
  report::Table table{.header = {"GPUs", "experts", "over ranks"}, .rows = {}};
  for (const Part& part : kParts) table.header.emplace_back(part.name);
  for (const char* name : {"step", "hidden", "a GPU sends"}) table.header.emplace_back(name);
  for (const ScalingRow& row : rows) {
    table.rows.push_back(cells_of(row, experts_before, row.before, row.traffic_before, row.expert_parallel_before));
    table.rows.push_back(cells_of(row, experts_after, row.after, row.traffic_after, row.expert_parallel_after));
  }
  std::string out = cat(report::text_table(table),
                        "gradients, values: what of their sending the step waits for; hidden: what it does not\n\n");
  for (const std::string& sentence : reasons(experts_before, experts_after)) out += sentence + "\n";
  return out;
}

Json Scaling::to_json() const {
  Json out = Json::object({{"name", cluster.name},
                           {"gpus_per_node", cluster.gpus_per_node},
                           {"node", link_json(cluster.node)},
                           {"network", link_json(cluster.network)},
                           {"source", cluster.source},
                           {"rows", Json::array()}});
  for (const ScalingRow& row : rows) {
    out["rows"].push_back(
        Json::object({{"gpus", row.gpus},
                      {"tokens_per_gpu", row.tokens},
                      {"ratio", row.ratio()},
                      {"fits", Json::array({Json(fits(row.state_before)), Json(fits(row.state_after))})},
                      {"before", step_json(row.before, row.traffic_before, row.expert_parallel_before)},
                      {"after", step_json(row.after, row.traffic_after, row.expert_parallel_after)}}));
  }
  return out;
}

Parallelism parallelism_of(const CostOptions& options, int64_t gpus, bool is_after) {
  const int64_t before = options.expert_parallel;
  return {gpus, is_after ? options.expert_parallel_after.value_or(before) : before, options.zero1};
}

Scaling simulate_scaling(const ModelSize& before, const ModelSize& after, const Device& device,
                         const CostOptions& options) {
  Scaling scaling{.cluster = find_cluster(*options.cluster), .memory_bytes = device.memory_bytes};
  const StateBytes bytes = state_bytes(options);
  for (const int64_t gpus : simulated_gpus(options)) {
    const Parallelism first = parallelism_of(options, gpus, false), then = parallelism_of(options, gpus, true);
    check_parallelism(first, before.experts, before.experts);
    check_parallelism(then, after.experts, after.experts);
    const StepWork work = step_work(options, gpus);
    const double tokens = work.batch_tokens / static_cast<double>(gpus);
    const Exchange exchange = exchange_of(bytes, work, tokens);
    scaling.rows.push_back({.gpus = gpus,
                            .expert_parallel_before = first.expert,
                            .expert_parallel_after = then.expert,
                            .tokens = tokens,
                            .traffic_before = expected_traffic(before, first, bytes, tokens, exchange),
                            .traffic_after = expected_traffic(after, then, bytes, tokens, exchange),
                            .before = simulate_step(before, device, scaling.cluster, first, bytes, work),
                            .after = simulate_step(after, device, scaling.cluster, then, bytes, work),
                            .state_before = device_memory(before, first, bytes).total(),
                            .state_after = device_memory(after, then, bytes).total()});
  }
  return scaling;
}

}  // namespace coppice::cost
