#include "coppice/verify/content.h"

#include <algorithm>
#include <optional>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/grow/grown_model.h"
#include "coppice/plan/lineage.h"
#include "coppice/verify/names.h"
#include "coppice/verify/recognise.h"

namespace coppice::verify {
namespace {

using families::Model;
using families::Role;
using families::TensorSlot;

/// Whether the tensor belongs to an expert. Zero experts that longcat_flash saves like experts do not count.
bool grows(const Model& model, const TensorSlot& slot) {
  return families::has_rows(slot.role()) ||
         (families::is_expert(slot.role()) && slot.expert < model.config.num_experts);
}

/// The name, in the expanded model, of a tensor outside of experts and routers; none if it is missing.
std::optional<std::string> name_after(const Model& before, const Model& after, const NamesIn& names,
                                      const TensorSlot& slot) {
  if (slot.expert < 0) return names.find(before.config, slot);
  std::string name =
      families::name_for_expert(slot, slot.expert - before.config.num_experts + after.config.num_experts);
  if (!after.checkpoint.contains(name)) return std::nullopt;
  return name;
}

/// The embeddings, if the head of the model is the same tensor.
const TensorSlot* embedding_of(const Model& model) {
  const auto found =
      std::ranges::find_if(model.slots, [](const TensorSlot& slot) { return slot.role() == Role::kEmbedding; });
  return model.config.tied && found != model.slots.end() ? &*found : nullptr;
}

/// Whether the slot is a head that repeats the embeddings to which it is tied.
bool is_tied_copy(const Model& model, const TensorSlot& slot) {
  const TensorSlot* embedding = embedding_of(model);
  return slot.role() == Role::kLmHead && embedding != nullptr &&
         same_tensor(model.checkpoint.at(slot.name), model.checkpoint.at(embedding->name));
}

void check_other_tensors(const Model& before, const Model& after, size_t threads, Progress& progress,
                         VerifyResult& result) {
  std::vector<const TensorSlot*> slots;
  for (const TensorSlot& slot : before.slots) {
    if (!grows(before, slot)) slots.push_back(&slot);
  }
  const NamesIn names_after(after), names_before(before);
  std::vector<std::string> problems(slots.size());
  parallel_for(slots.size(), threads, [&](size_t i) {
    check_interrupt();
    const auto name = name_after(before, after, names_after, *slots[i]);
    const io::Checkpoint::Entry was = before.checkpoint.at(slots[i]->name);
    if (!name) {
      const bool is_known = was.info->bytes == 0 || (embedding_of(after) && is_tied_copy(before, *slots[i]));
      if (!is_known) problems[i] = cat("'", slots[i]->name, "': is missing");
    } else if (!same_tensor(was, after.checkpoint.at(*name))) {
      problems[i] = cat("'", *name, "': changed; only experts and routers may change");
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
    const bool is_known = grows(after, slot) || slot.expert >= 0 || names_before.find(after.config, slot);
    if (!is_known && after.checkpoint.at(slot.name).info->bytes > 0 && !is_tied_copy(after, slot))
      result.problems.push_back(cat("'", slot.name, "': is new; the model before has no such tensor"));
  }
}

/// Checks that tensors with a row per expert are those of the model before, with rows for the new experts.
void check_rows(const Model& before, const Model& after, VerifyResult& result) {
  const int64_t more = after.config.num_experts - before.config.num_experts;
  const NamesIn names_after(after), names_before(before);
  for (const TensorSlot& slot : before.slots) {
    if (!families::has_rows(slot.role())) continue;
    const auto found = names_after.entry(before.config, slot);
    if (!found) {
      result.problems.push_back(cat("'", slot.name, "': is missing"));
      continue;
    }
    const io::TensorInfo &was = *before.checkpoint.at(slot.name).info, &is = *found->info;
    const int64_t cols = was.elements() / before.config.rows_of(slot.role());
    if (was.dtype != is.dtype || is.elements() - was.elements() != more * cols) {
      result.problems.push_back(cat("'", slot.name, "': is ", io::dtype_name(is.dtype), " ", shape_text(is.shape),
                                    "; wanted ", io::dtype_name(was.dtype), " ", shape_text(was.shape)));
    }
  }
  for (const TensorSlot& slot : after.slots) {
    if (families::has_rows(slot.role()) && !names_before.find(after.config, slot))
      result.problems.push_back(cat("'", slot.name, "': is new; the model before has no such tensor"));
  }
}

/// Checks that both models have experts in the same layers and with the same matrices.
void check_experts(const Model& before, const Model& after, const models::ExpertTensors& was,
                   const models::ExpertTensors& is, VerifyResult& result) {
  if (before.layers_with_experts != after.layers_with_experts) {
    result.problems.emplace_back("experts are in other layers than in the model before");
    return;
  }
  for (const int64_t layer : before.layers_with_experts) {
    const auto a = matrices_of(was, layer, 0), b = matrices_of(is, layer, 0);
    const bool same = std::ranges::equal(a, b, [](const ExpertMatrixRef& x, const ExpertMatrixRef& y) {
      const bool same_bytes = x.is_matrix() ? x.place.rows == y.place.rows && x.place.cols == y.place.cols
                                            : x.tensor.slice.bytes == y.tensor.slice.bytes;
      return x.role == y.role && same_bytes && x.tensor.entry.info->dtype == y.tensor.entry.info->dtype;
    });
    if (same) continue;
    const auto text = [](const std::vector<ExpertMatrixRef>& matrices) {
      std::vector<std::string> parts;
      for (const ExpertMatrixRef& m : matrices) {
        parts.push_back(cat(families::role_name(m.role), " ", io::dtype_name(m.tensor.entry.info->dtype), " [",
                            m.place.rows, ", ", m.place.cols, "]"));
      }
      return join(parts);
    };
    result.problems.push_back(
        cat("layer ", layer, ": experts are ", text(b), "; wanted those of the model before, ", text(a)));
  }
}

uint64_t bytes_of_layer(const Model& model, int64_t layer) {
  uint64_t bytes = 0;
  for (const TensorSlot& slot : model.slots) {
    if (slot.layer == layer && grows(model, slot)) bytes += model.checkpoint.at(slot.name).info->bytes;
  }
  return bytes;
}

/// The factors that follow from a larger top-K, whatever the methods.
GrowthFactors factors_of(const families::ModelConfig& config, int64_t top_k_factor) {
  if (top_k_factor == 1) return {};
  const plan::GrowthPlan plan = plan::make_plan(config,
                                                {.experts = plan::ExpertCount::from_text(cat(top_k_factor, "x")),
                                                 .router_init = methods::MethodChoice{"copy", {}},
                                                 .scale_top_k = true},
                                                nullptr);
  return {.experts = {.down = plan.down_factor, .down_bias = plan.down_bias_factor},
          .selection_bias = plan.selection_bias_factor};
}

void check_optimizer(const Model& before, const Model& after, VerifyResult& result) {
  try {
    const bool was = std::filesystem::is_directory(before.checkpoint.directory() / io::kTrainerFolder);
    const bool is = models::OptimizerState::open(after).has_value();
    if (is) result.not_compared.push_back(cat(io::kTrainerFolder, "/ (only its shapes)"));
    if (was && !is) result.not_compared.push_back(cat(io::kTrainerFolder, "/, which is missing afterwards"));
  } catch (const Error& error) {
    if (error.code == ErrorCode::kInterrupted || error.code == ErrorCode::kIo) throw;
    result.problems.emplace_back(error.what());
  }
}

size_t steps_of(const Model& model) {
  const auto lineage = plan::read_lineage(model.checkpoint.directory());
  return lineage ? lineage->at("steps").items().size() : 0;
}

void name_what_is_only_alike(VerifyResult& result) {
  const OnlyAlike& alike = result.only_alike;
  std::vector<std::string> values;
  const auto add = [&](int64_t count, const char* one, const char* several) {
    if (count > 0) values.push_back(cat(count, " ", count == 1 ? one : several));
  };
  add(alike.matrices, "matrix of copies", "matrices of copies");
  add(alike.router_rows, "router row", "router rows");
  add(alike.biases, "bias", "biases");
  if (!values.empty()) result.not_compared.push_back(cat("values of ", join(values)));
  if (alike.column_orders > 0)
    result.not_compared.push_back(cat("the order of columns in ", alike.column_orders, " matrices of copies"));
}

}  // namespace

void verify_by_content(const Model& before, const Model& after, size_t threads, Progress& progress,
                       VerifyResult& result) {
  check_other_tensors(before, after, threads, progress, result);
  check_optimizer(before, after, result);
  const size_t problems = result.problems.size();
  check_rows(before, after, result);
  const models::ExpertTensors parts_before(before), parts_after(after);
  check_experts(before, after, parts_before, parts_after, result);
  GrowthFactors factors;
  try {
    factors = factors_of(before.config, result.top_k_factor);
  } catch (const Error& error) {
    if (error.code != ErrorCode::kUsage && error.code != ErrorCode::kUnsupported) throw;
    result.problems.emplace_back(error.what());
  }
  if (result.problems.size() > problems) return;  // the rest compares experts of both models
  const bool several_growths = steps_of(after) > steps_of(before) + 1;
  for (const int64_t layer : before.layers_with_experts) {
    recognise_layer(parts_before, parts_after, layer, factors, several_growths, threads, result);
    progress.advance(bytes_of_layer(after, layer));
  }
  name_what_is_only_alike(result);
}

}  // namespace coppice::verify
