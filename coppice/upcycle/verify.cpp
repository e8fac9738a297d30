#include "coppice/upcycle/verify.h"

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/upcycle/expert_content.h"
#include "coppice/upcycle/grown_weights.h"
#include "coppice/upcycle/verify_detail.h"
#include "coppice/upcycle/verify_layer.h"
#include "coppice/upcycle/verify_split.h"

namespace coppice::upcycle {
namespace {

using families::Model;
using families::ModelConfig;
using families::TensorSlot;

/// By how much top-K has grown, if a growth can have made that.
int64_t top_k_factor(const ModelConfig& before, const ModelConfig& after) {
  const int64_t factor = before.top_k > 0 ? after.top_k / before.top_k : 1;
  const bool scaled =
      factor > 1 && after.top_k == factor * before.top_k && after.num_experts == factor * before.num_experts;
  return scaled ? factor : 1;
}

/// Keys of config.json that differ though the growth between the two changes others only.
void check_configs(const ModelConfig& before, const ModelConfig& after, VerifyResult& result) {
  GrowthPlan plan;
  plan.experts_before = before.num_experts;
  plan.experts_after = after.num_experts;
  plan.top_k_factor = result.top_k_factor;
  plan.split = result.split;
  Json wanted;
  try {
    wanted = grown_config(before, plan);
  } catch (const Error& error) {  // the family cannot say such a growth
    result.problems.emplace_back(error.what());
    return;
  }
  detail::compare_objects(wanted, after.json, {}, result.problems);
  if (after.num_experts < before.num_experts) {
    result.problems.push_back(cat("config.json: ", after.num_experts, " experts; there were ", before.num_experts));
  }
}

/// True if the experts of both have the same shapes in the same layers, so that they can be compared.
bool comparable(const Model& before, const Model& after) {
  if (before.config.family->model_type != after.config.family->model_type ||
      before.layers_with_experts != after.layers_with_experts)
    return false;
  const families::ExpertParts was(before), is(after);
  return std::ranges::all_of(before.layers_with_experts, [&](int64_t layer) {
    return std::ranges::equal(was.of(layer, 0), is.of(layer, 0), [](const auto& a, const auto& b) {
      return a.slot->role() == b.slot->role() && a.slice.bytes == b.slice.bytes &&
             a.entry.info->dtype == b.entry.info->dtype;
    });
  });
}

/// Choices behind the experts that were saved as experts are none (longcat_flash).
bool grows(const Model& model, const TensorSlot& slot) {
  return families::has_rows(slot.role()) ||
         (families::is_expert(slot.role()) && slot.expert < model.config.num_experts);
}

/// The name of a tensor that does not grow, in the grown model.
std::string name_after(const Model& before, const Model& after, const TensorSlot& slot) {
  if (slot.expert < 0) return slot.name;
  return families::name_for_expert(slot, slot.expert - before.config.num_experts + after.config.num_experts);
}

void check_other_tensors(const Model& before, const Model& after, size_t threads, Progress& progress,
                         VerifyResult& result) {
  std::vector<const TensorSlot*> slots;
  for (const TensorSlot& slot : before.slots) {
    if (!grows(before, slot)) slots.push_back(&slot);
  }
  std::vector<std::string> problems(slots.size());
  parallel_for(slots.size(), threads, [&](size_t i) {
    check_interrupt();
    const std::string name = name_after(before, after, *slots[i]);
    const io::Checkpoint::Entry was = before.checkpoint.at(slots[i]->name);
    if (!after.checkpoint.contains(name)) {
      problems[i] = cat("'", name, "': it is missing");
    } else if (!same_tensor(was, after.checkpoint.at(name))) {
      problems[i] = cat("'", name, "': it changed; only experts and routers may");
    }
    progress.advance(was.info->bytes);
  });
  for (const std::string& problem : problems) {
    if (problem.empty()) {
      ++result.identical;
    } else {
      result.problems.push_back(problem);
    }
  }
  for (const TensorSlot& slot : after.slots) {
    if (!grows(after, slot) && slot.expert < 0 && !before.checkpoint.contains(slot.name)) {
      result.problems.push_back(cat("'", slot.name, "': the model before has no such tensor"));
    }
  }
}

/// Experts and routers keep their dtype.
bool check_dtypes(const Model& before, const Model& after, VerifyResult& result) {
  const size_t problems = result.problems.size();
  for (const TensorSlot& slot : before.slots) {
    if (!grows(before, slot) || !after.checkpoint.contains(slot.name)) continue;
    const io::Dtype was = before.checkpoint.at(slot.name).info->dtype;
    const io::Dtype is = after.checkpoint.at(slot.name).info->dtype;
    if (was == is) continue;
    result.problems.push_back(cat("'", slot.name, "': it is ", io::dtype_name(is), " and was ", io::dtype_name(was)));
  }
  return result.problems.size() == problems;
}

bool check_comparable(const Model& before, const Model& after, VerifyResult& result) {
  const bool same = comparable(before, after);
  if (!same && result.problems.empty())
    result.problems.emplace_back(
        "the experts are in other layers or of other shapes; wanted those of the model before");
  return same;
}

uint64_t bytes_of_layer(const Model& model, int64_t layer) {
  uint64_t bytes = 0;
  for (const TensorSlot& slot : model.slots) {
    if (slot.layer == layer && grows(model, slot)) bytes += model.checkpoint.at(slot.name).info->bytes;
  }
  return bytes;
}

uint64_t bytes_compared(const Model& before, const Model& after) {
  uint64_t bytes = before.checkpoint.total_bytes();
  for (const int64_t layer : after.layers_with_experts) bytes += bytes_of_layer(after, layer);
  return bytes;
}

}  // namespace

VerifyResult verify(const Model& before, const Model& after, size_t threads) {
  VerifyResult result;
  result.experts_before = before.config.num_experts;
  result.experts_after = after.config.num_experts;
  result.top_k_factor = top_k_factor(before.config, after.config);
  result.split = split_parts(before.config, after.config);
  Progress progress("verify", bytes_compared(before, after), ProgressUnit::kBytes);
  check_configs(before.config, after.config, result);
  check_other_tensors(before, after, threads, progress, result);
  if (result.split > 1) {
    verify_split(before, after, threads, result);
  } else if (check_dtypes(before, after, result) && check_comparable(before, after, result)) {
    const families::ExpertParts parts_before(before), parts_after(after);
    for (const int64_t layer : before.layers_with_experts) {
      verify_layer(parts_before, parts_after, layer, threads, result);
      progress.advance(bytes_of_layer(before, layer) + bytes_of_layer(after, layer));
    }
  }
  result.ok = result.problems.empty();
  return result;
}

Json VerifyResult::to_json() const {
  Json json = Json::object();
  json["ok"] = ok;
  json["identical"] = identical;
  json["experts"] = Json::array({Json(experts_before), Json(experts_after)});
  json["top_k_factor"] = Json(top_k_factor);
  json["split"] = Json(split);
  json["experts_original"] = experts_original;
  json["experts_changed"] = experts_changed;
  json["smallest_cosine"] = smallest_cosine;
  json["router_rows_equal"] = router_rows_equal;
  json["router_rows_changed"] = router_rows_changed;
  json["biases_changed"] = biases_changed;
  json["parents"] = Json::object();
  for (const auto& [layer, of_layer] : parents) json["parents"][std::to_string(layer)] = Json::array_of(of_layer);
  json["problems"] = Json::array_of(problems);
  return json;
}

}  // namespace coppice::upcycle
