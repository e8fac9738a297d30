#include "coppice/cost/dense_estimate.h"

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cost/traffic.h"
#include "coppice/report/html.h"

namespace coppice::cost {
namespace {

constexpr int64_t kDefaultTopK = 2;
constexpr const char* kDefaultExperts = "8";

ModelSize as_mixture(const ModelSize& dense, const DenseEstimate& estimate) {
  ModelSize out = dense;
  auto& count = out.parameters;
  const int64_t expert = count.dense / estimate.granularity;
  out.experts = estimate.experts;
  out.top_k = estimate.top_k;
  out.moe_layers = dense.num_layers;
  count.total -= count.dense;
  count.dense = 0;
  count.experts = expert * estimate.experts;
  count.routers = estimate.experts * dense.model_dim * dense.num_layers;
  count.total += count.experts + count.routers;
  count.active = count.total - expert * (estimate.experts - estimate.top_k);
  return out;
}

std::string judge(double tokens, double compute) {
  const std::string yours = cat("Your MoE budget is ", percent(tokens, 0), " of the dense tokens and ",
                                percent(compute, 0), " of the dense FLOPs. ");
  if (compute >= kScratchBound) return yours + "It does not pay: train from scratch.";
  if (compute > kSparseUpcyclingBound)
    return yours + "It does not pay by either bound: training from scratch catches up before the end.";
  if (tokens > kOlmoeBound)
    return yours +
           "The bounds disagree: by OLMoE's, training from scratch has caught up by then; by Sparse Upcycling's it has "
           "not.";
  return yours + "It pays by both bounds.";
}

}  // namespace

DenseEstimate estimate_dense_cost(const families::Model& model, const CostOptions& o) {
  check_options(o, false);
  DenseEstimate estimate{.family = std::string(model.config.family->model_type),
                         .experts = o.experts.value_or(plan::ExpertCount{kDefaultExperts}).resolve(1),
                         .top_k = o.top_k.value_or(kDefaultTopK),
                         .granularity = o.granularity.value_or(1),
                         .before = model_size(model),
                         .parallelism = {o.data_parallel, o.expert_parallel, o.zero1}};
  if (estimate.top_k > estimate.experts) {
    throw Error(ErrorCode::kUsage, cat("top-k: ", estimate.top_k, " of ", estimate.experts,
                                       " experts; wanted at most the number of experts"));
  }
  if (estimate.experts % estimate.granularity != 0 || model.config.dense_width % estimate.granularity != 0) {
    throw Error(ErrorCode::kUsage,
                cat("granularity: ", estimate.granularity, " does not divide the ", estimate.experts,
                    " experts or the width of ", model.config.dense_width, " (choose a divisor of both)"));
  }
  estimate.after = as_mixture(estimate.before, estimate);
  check_parallelism(estimate.parallelism, estimate.experts, estimate.experts);
  const StateBytes state = state_bytes(o);
  estimate.memory_before = device_memory(estimate.before, {o.data_parallel, 1, o.zero1}, state);
  estimate.memory_after = device_memory(estimate.after, estimate.parallelism, state);
  estimate.all_to_all = all_to_all_bytes(estimate.after, estimate.parallelism,
                                         {.activation_bytes = state.weight, .recompute = o.recompute});
  if (o.tokens_before && o.tokens_after) {
    estimate.tokens_ratio = *o.tokens_after / *o.tokens_before;
    estimate.compute_ratio = *estimate.tokens_ratio * static_cast<double>(estimate.after.parameters.active) /
                             static_cast<double>(estimate.before.parameters.active);
    estimate.verdict = judge(*estimate.tokens_ratio, *estimate.compute_ratio);
  } else {
    estimate.verdict = "Give --tokens-before (dense) and --tokens-after (MoE) for a verdict.";
  }
  return estimate;
}

std::string DenseEstimate::to_text() const {
  const auto count = [](int64_t value) { return count_text(static_cast<double>(value)); };
  const report::Table sizes{
      .header = {"", "before", "after"},
      .rows = {{"parameters", count(before.parameters.total), count(after.parameters.total)},
               {"active per token", count(before.parameters.active), count(after.parameters.active)},
               {"training state per device", bytes_text(memory_before.total()), bytes_text(memory_after.total())},
               {"all-to-all per token", "0", all_to_all > 0 ? bytes_text(static_cast<uint64_t>(all_to_all)) : "0"}}};
  const report::Table bounds{
      .header = {"training from scratch has caught up at", "of the dense model's", "source"},
      .rows = {
          {percent(kOlmoeBound, 0), "tokens", "OLMoE (arXiv:2409.02060): 500 B tokens, for a dense model with 2 T"},
          {percent(kSparseUpcyclingBound, 0), "FLOPs", "Sparse Upcycling (arXiv:2212.05055)"},
          {percent(kScratchBound, 0), "FLOPs", "Skywork-MoE (arXiv:2406.06563): from there on, train from scratch"}}};
  return cat(
      family, ": dense -> ", experts, " experts of 1/", granularity, " the width, ", top_k, " per token\n\n",
      report::text_table(sizes), "\n", report::text_table(bounds), "\n", verdict,
      "\nServing under load: such models were up to about 40 % slower than the dense one (Doubov et al., PMLR 262).\n");
}

Json DenseEstimate::to_json() const {
  const auto or_null = [](const std::optional<double>& value) { return value ? Json(*value) : Json(); };
  Json bounds = Json::array();
  bounds.push_back(Json::object({{"share", kOlmoeBound}, {"of", "tokens"}, {"source", "arXiv:2409.02060"}}));
  bounds.push_back(Json::object({{"share", kSparseUpcyclingBound}, {"of", "flops"}, {"source", "arXiv:2212.05055"}}));
  bounds.push_back(Json::object({{"share", kScratchBound}, {"of", "flops"}, {"source", "arXiv:2406.06563"}}));
  return Json::object(
      {{"coppice_cost", 1},
       {"family", family},
       {"dense", true},
       {"experts", experts},
       {"top_k", top_k},
       {"granularity", granularity},
       {"parameters", Json::array({Json(before.parameters.total), Json(after.parameters.total)})},
       {"active_parameters", Json::array({Json(before.parameters.active), Json(after.parameters.active)})},
       {"device_bytes", Json::array({Json(memory_before.total()), Json(memory_after.total())})},
       {"all_to_all_bytes_per_token", all_to_all},
       {"tokens_ratio", or_null(tokens_ratio)},
       {"compute_ratio", or_null(compute_ratio)},
       {"bounds", std::move(bounds)},
       {"verdict", verdict}});
}

}  // namespace coppice::cost
