#include "coppice/cost/dense_plan.h"

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/report/html.h"

namespace coppice::cost {
namespace {

constexpr int64_t kDefaultTopK = 2;
constexpr const char* kDefaultExperts = "8";

ModelSize as_mixture(const ModelSize& dense, const DensePlan& plan) {
  ModelSize out = dense;
  auto& count = out.parameters;
  const int64_t expert = count.dense / plan.granularity;
  out.experts = plan.experts;
  out.top_k = plan.top_k;
  out.moe_layers = dense.num_layers;
  count.total -= count.dense;
  count.dense = 0;
  count.experts = expert * plan.experts;
  count.routers = plan.experts * dense.model_dim * dense.num_layers;
  count.total += count.experts + count.routers;
  count.active = count.total - expert * (plan.experts - plan.top_k);
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

DensePlan make_dense_plan(const families::Model& model, const PlanOptions& o) {
  check_options(o, false);
  DensePlan plan{.family = std::string(model.config.family->model_type),
                 .experts = o.experts.value_or(plan::ExpertCount{kDefaultExperts}).resolve(1),
                 .top_k = o.top_k.value_or(kDefaultTopK),
                 .granularity = o.granularity.value_or(1),
                 .before = model_size(model),
                 .parallelism = {o.data_parallel, o.expert_parallel, o.zero1}};
  if (plan.top_k > plan.experts) {
    throw Error(ErrorCode::kUsage,
                cat("top-k: ", plan.top_k, " of ", plan.experts, " experts; wanted at most the number of experts"));
  }
  if (plan.experts % plan.granularity != 0 || model.config.dense_width % plan.granularity != 0) {
    throw Error(ErrorCode::kUsage,
                cat("granularity: ", plan.granularity, " does not divide the ", plan.experts,
                    " experts or the width of ", model.config.dense_width, " (choose a divisor of both)"));
  }
  plan.after = as_mixture(plan.before, plan);
  check_parallelism(plan.parallelism, plan.experts, plan.experts);
  const StateBytes state = state_bytes(o);
  plan.memory_before = device_memory(plan.before, {o.data_parallel, 1, o.zero1}, state);
  plan.memory_after = device_memory(plan.after, plan.parallelism, state);
  plan.all_to_all = all_to_all_bytes(plan.after, plan.parallelism);
  if (o.tokens_before && o.tokens_after) {
    plan.tokens_ratio = *o.tokens_after / *o.tokens_before;
    plan.compute_ratio = *plan.tokens_ratio * static_cast<double>(plan.after.parameters.active) /
                         static_cast<double>(plan.before.parameters.active);
    plan.verdict = judge(*plan.tokens_ratio, *plan.compute_ratio);
  } else {
    plan.verdict = "Give --tokens-before (dense) and --tokens-after (MoE) for a verdict.";
  }
  return plan;
}

std::string DensePlan::to_text() const {
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

Json DensePlan::to_json() const {
  const auto or_null = [](const std::optional<double>& value) { return value ? Json(*value) : Json(); };
  Json bounds = Json::array();
  bounds.push_back(Json::object({{"share", kOlmoeBound}, {"of", "tokens"}, {"source", "arXiv:2409.02060"}}));
  bounds.push_back(Json::object({{"share", kSparseUpcyclingBound}, {"of", "flops"}, {"source", "arXiv:2212.05055"}}));
  bounds.push_back(Json::object({{"share", kScratchBound}, {"of", "flops"}, {"source", "arXiv:2406.06563"}}));
  return Json::object(
      {{"coppice_plan", 1},
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
