#include "coppice/upcycle/verify_split.h"

#include <optional>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/upcycle/grown_weights.h"
#include "coppice/upcycle/verify_detail.h"

namespace coppice::upcycle {
namespace {

using families::Model;
using families::Role;
using families::TensorSlot;

constexpr std::string_view kMaker = "a split";

struct Split {
  GrowthPlan plan;
  std::vector<TensorSlot> slots;
  std::optional<OptimizerState> state;
  std::vector<OutputTensor> tensors;

  Split(const Model& before, const GrowthOptions& options)
      : plan(with_all_layers(before, make_plan(before.config, options, nullptr))),
        slots(grown_slots(before, plan)),
        state(OptimizerState::open(before)),
        tensors(grown_weights(before, plan, slots, state ? &*state : nullptr)) {}
  Split(const Split&) = delete;
  Split& operator=(const Split&) = delete;
};

bool is_cut(const TensorSlot& slot) { return families::has_rows(slot.role()) || families::is_expert(slot.role()); }

/// Whether the first router says that the experts are in this order.
bool has_order_of(const Split& split, const Model& after) {
  for (size_t i = 0; i < split.slots.size(); ++i) {
    if (split.slots[i].role() == Role::kRouter) return detail::difference(split.tensors[i], after, kMaker).empty();
  }
  return true;
}

void compare(const Split& split, const Model& after, size_t threads, VerifyResult& result) {
  std::vector<std::string> problems(split.tensors.size());
  parallel_for(split.tensors.size(), threads, [&](size_t i) {
    check_interrupt();
    if (is_cut(split.slots[i])) problems[i] = detail::difference(split.tensors[i], after, kMaker);
  });
  for (size_t i = 0; i < problems.size(); ++i) {
    if (!problems[i].empty()) {
      result.problems.push_back(problems[i]);
    } else if (families::is_expert(split.slots[i].role())) {
      ++result.experts_changed;
    } else if (split.slots[i].role() == Role::kRouter) {
      result.router_rows_equal += split.plan.experts_after;
    }
  }
  for (const LayerPlan& layer : split.plan.layers) {
    for (const Child& child : layer.children) result.parents[layer.layer].push_back(child.parent);
  }
}

}  // namespace

int64_t split_parts(const families::ModelConfig& before, const families::ModelConfig& after) {
  if (after.expert_width <= 0 || after.expert_width >= before.expert_width) return 1;
  const int64_t parts = before.expert_width / after.expert_width;
  const bool whole = parts * after.expert_width == before.expert_width;
  return whole && after.num_experts == parts * before.num_experts ? parts : 1;
}

void verify_split(const Model& before, const Model& after, size_t threads, VerifyResult& result) {
  try {
    GrowthOptions options;
    options.split = result.split;
    const Split append(before, options);
    options.order = "siblings";
    const Split siblings(before, options);
    compare(has_order_of(siblings, after) ? siblings : append, after, threads, result);
  } catch (const Error& error) {
    if (error.code != ErrorCode::kUsage && error.code != ErrorCode::kUnsupported) throw;
    result.problems.push_back(cat("experts cut into ", result.split, ": ", error.what()));
  }
}

}  // namespace coppice::upcycle
