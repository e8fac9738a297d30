#include "coppice/upcycle/verify.h"

#include <set>

#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/upcycle/expert_content.h"
#include "coppice/upcycle/grown_weights.h"
#include "coppice/upcycle/verify_layer.h"

namespace coppice::upcycle {
namespace {

using families::Model;
using families::ModelConfig;
using families::TensorSlot;

/// Keys of config.json that differ though only the expert count may.
void check_configs(const ModelConfig& before, const ModelConfig& after, VerifyResult& result) {
  const Json wanted = families::with_num_experts(before, after.num_experts);
  std::set<std::string> keys;
  for (const auto& [key, value] : wanted.members()) keys.insert(key);
  for (const auto& [key, value] : after.json.members()) keys.insert(key);
  for (const std::string& key : keys) {
    const Json *was = wanted.find(key), *is = after.json.find(key);
    if (was != nullptr && is != nullptr && *was == *is) continue;
    result.problems.push_back(cat("config.json: '", key, "' is ", is != nullptr ? is->dump() : "absent", " and was ",
                                  was != nullptr ? was->dump() : "absent"));
  }
  if (after.num_experts < before.num_experts) {
    result.problems.push_back(cat("config.json: ", after.num_experts, " experts; there were ", before.num_experts));
  }
}

/// True if the experts of both have the same shapes in the same layers, so that they can be compared.
bool comparable(const ModelConfig& before, const ModelConfig& after) {
  return before.family == after.family && before.moe_layer == after.moe_layer && before.model_dim == after.model_dim &&
         before.expert_width == after.expert_width;
}

bool grows(const TensorSlot& slot) { return is_router(slot.role()) || families::is_expert(slot.role()); }

void check_other_tensors(const Model& before, const Model& after, size_t threads, Progress& progress,
                         VerifyResult& result) {
  std::vector<const TensorSlot*> slots;
  for (const TensorSlot& slot : before.slots) {
    if (!grows(slot)) slots.push_back(&slot);
  }
  std::vector<std::string> problems(slots.size());
  parallel_for(slots.size(), threads, [&](size_t i) {
    check_interrupt();
    const std::string& name = slots[i]->name;
    const io::Checkpoint::Entry was = before.checkpoint.at(name);
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
    if (!grows(slot) && !before.checkpoint.contains(slot.name)) {
      result.problems.push_back(cat("'", slot.name, "': the model before has no such tensor"));
    }
  }
}

/// Experts and routers keep their dtype.
bool check_dtypes(const Model& before, const Model& after, VerifyResult& result) {
  const size_t problems = result.problems.size();
  for (const TensorSlot& slot : before.slots) {
    if (!grows(slot) || !after.checkpoint.contains(slot.name)) continue;
    const io::Dtype was = before.checkpoint.at(slot.name).info->dtype;
    const io::Dtype is = after.checkpoint.at(slot.name).info->dtype;
    if (was == is) continue;
    result.problems.push_back(cat("'", slot.name, "': it is ", io::dtype_name(is), " and was ", io::dtype_name(was)));
  }
  return result.problems.size() == problems;
}

uint64_t bytes_of_layer(const Model& model, int64_t layer) {
  uint64_t bytes = 0;
  for (const TensorSlot& slot : model.slots) {
    if (slot.layer == layer && grows(slot)) bytes += model.checkpoint.at(slot.name).info->bytes;
  }
  return bytes;
}

uint64_t bytes_compared(const Model& before, const Model& after) {
  uint64_t bytes = before.checkpoint.total_bytes();
  for (size_t layer = 0; layer < after.config.moe_layer.size(); ++layer)
    bytes += bytes_of_layer(after, static_cast<int64_t>(layer));
  return bytes;
}

}  // namespace

VerifyResult verify(const Model& before, const Model& after, size_t threads) {
  VerifyResult result;
  result.experts_before = before.config.num_experts;
  result.experts_after = after.config.num_experts;
  Progress progress("verify", bytes_compared(before, after), ProgressUnit::kBytes);
  check_configs(before.config, after.config, result);
  check_other_tensors(before, after, threads, progress, result);
  if (comparable(before.config, after.config) && check_dtypes(before, after, result)) {
    for (size_t i = 0; i < before.config.moe_layer.size(); ++i) {
      const auto layer = static_cast<int64_t>(i);
      if (!before.config.moe_layer[i]) continue;
      verify_layer(before, after, layer, threads, result);
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
