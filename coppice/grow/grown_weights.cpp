#include "coppice/grow/grown_weights.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/grow/child_piece_detail.h"
#include "coppice/grow/grow.h"
#include "coppice/matrix/finite.h"
#include "coppice/matrix/quantised_matrix.h"
#include "coppice/matrix/stored_matrix.h"
#include "coppice/models/expert_layout.h"

namespace coppice::grow {
namespace {

using families::Model;
using families::Role;
using families::TensorSlot;
using io::Checkpoint;
using methods::Child;
using methods::LayerPlan;
using output::OutputTensor;
using plan::GrowthPlan;

/// The most exact values of a tensor: its fp32 master weights if there are any, else the stored tensor.
Checkpoint::Entry best_values(const Model& model, const models::OptimizerState* state, std::string_view name) {
  return state != nullptr && state->has_master(name) ? state->at(name, "master") : model.checkpoint.at(name);
}

models::ExpertSlice slice_of(const Model& model, const TensorSlot& slot, const Checkpoint::Entry& entry,
                             int64_t expert) {
  return models::expert_slice(slot, entry.info->bytes, model.config.num_experts, expert);
}

/// Whether the tensor has something for each child: it is stacked, or of one of them.
bool is_grown(const GrowthPlan& plan, const TensorSlot& slot) {
  return slot.rule->layout.stacked || (slot.expert >= 0 && slot.expert < plan.experts_after);
}

/// Computes the pieces of the expanded model that are not copied; the piece of slot s and child c has the number s *
/// kMostChildren + c.
class GrownPieces : public output::PieceMaker {
 public:
  GrownPieces(const Model& model, const GrowthPlan& plan, const std::vector<TensorSlot>& slots,
              const models::OptimizerState* state)
      : model_(model), plan_(plan), slots_(slots), state_(state) {}

  uint64_t number_of(const TensorSlot& slot, const Child& child) const {
    const auto& children = plan_.layer(slot.layer).children;
    return number_of(slot) + static_cast<uint64_t>(&child - children.data());
  }
  /// The same for all copies of an expert.
  static uint64_t identity_of(const families::QuantisedTensor& parts, const Child& child) {
    return parts.number * kMostChildren + (parts.is_stack ? child.parent : 0);
  }
  uint64_t number_of(const TensorSlot& slot) const {
    return static_cast<uint64_t>(&slot - slots_.data()) * kMostChildren;
  }

 private:
  static constexpr uint64_t kMostChildren = uint64_t{1} << 24;

  Fill make(uint64_t number) const override {
    const TensorSlot& slot = slots_[number / kMostChildren];
    if (families::has_rows(slot.role())) return router(slot);
    return is_grown(plan_, slot) ? child(slot, number % kMostChildren) : computed(slot);
  }

  Fill child(const TensorSlot& slot, uint64_t index) const {
    const Child& child = plan_.layer(slot.layer).children.at(index);
    const io::TensorInfo source = model_.info_of(source_name(plan_, slot));
    TensorSlot before = slot;
    before.shape = source.shape;
    const bool stacked = slot.rule->layout.stacked;
    const auto original = [this, &slot, stacked](uint32_t expert, const models::ExpertMatrix& place) {
      const std::string name = stacked ? slot.name.str() : families::name_for_expert(slot, expert);
      if (const families::QuantisedTensor* parts = model_.quantised(name))
        return matrix::quantised_rows(*parts, stacked ? expert : 0, place, slot.rule->layout.transposed);
      const auto entry = best_values(model_, state_, name);
      return matrix::stored_matrix({entry, slice_of(model_, slot, entry, expert)}, place);
    };
    return detail::child_fill(plan_, child, before, slot, source.dtype, original);
  }

  /// A tensor that is not of experts, and is computed from its quantised values.
  Fill computed(const TensorSlot& slot) const {
    const families::QuantisedTensor* parts = model_.quantised(source_name(plan_, slot));
    COPPICE_CHECK(parts != nullptr, slot.name);
    const models::ExpertMatrix place = matrix::whole_matrix(slot.role(), parts->rows, parts->cols);
    return matrix::matrices_fill({place}, io::Dtype::kBf16, [parts, place] {
      return std::vector<matrix::MatrixRows>{matrix::quantised_rows(*parts, 0, place, false)};
    });
  }

  Fill router(const TensorSlot& slot) const {
    const Checkpoint::Entry stored = model_.checkpoint.at(slot.name);
    const int64_t cols = stored.info->elements() / model_.config.rows_of(slot.role());
    return [this, &slot, dtype = stored.info->dtype, cols](uint64_t, std::span<std::byte> bytes) {
      matrix::SourceMatrices sources;
      const Checkpoint::Entry entry = best_values(model_, state_, slot.name);
      sources.hold(entry);
      const auto width = io::dtype_bytes(entry.info->dtype);
      const matrix::MatrixBytes before{entry.info->dtype, plan_.experts_before, cols,
                                       entry.data().first(static_cast<size_t>(plan_.experts_before * cols) * width)};
      const bool has_bias = model_.config.routing.has_router_bias;
      if (before.dtype == dtype) {
        grow_router(plan_, slot.layer, slot.role(), before, bytes, has_bias);
        return;
      }
      std::vector<float> master(static_cast<size_t>(plan_.experts_after * cols));
      grow_router(plan_, slot.layer, slot.role(), before, std::as_writable_bytes(std::span(master)), has_bias);
      matrix::round_finite(dtype, master, bytes, cat("'", slot.name, "'"));
    };
  }

  const Model& model_;
  const GrowthPlan& plan_;
  const std::vector<TensorSlot>& slots_;
  const models::OptimizerState* state_;
};

/// The tensor of one expert, or the one that stacks all experts of a layer: a piece for each child.
OutputTensor grown_experts(const Model& model, const GrowthPlan& plan, const TensorSlot& slot, io::TensorInfo info,
                           const std::shared_ptr<const GrownPieces>& maker) {
  const io::Dtype dtype = info.dtype;
  OutputTensor out{std::move(info), {}};
  const std::string name = source_name(plan, slot);
  const families::QuantisedTensor* const parts = model.quantised(name);
  const Checkpoint::Entry source = parts == nullptr ? model.checkpoint.at(name) : Checkpoint::Entry{};
  const auto add = [&](const Child& child) {
    const bool copies = families::is_copied_whole(slot.role()) || is_plain_copy(plan, slot.layer, child, slot.role());
    if (copies && parts == nullptr) {
      const models::ExpertSlice slice = slice_of(model, slot, source, child.parent);
      out.pieces.push_back({.bytes = slice.bytes, .file = source.file, .offset = source.info->offset + slice.offset});
    } else {
      output::OutputPiece& piece = out.pieces.emplace_back(detail::child_piece(plan, slot, dtype));
      piece.maker = maker;
      piece.number = maker->number_of(slot, child);
      if (copies) piece.identity = maker->identity_of(*parts, child);
    }
  };
  if (slot.rule->layout.stacked) {
    std::ranges::for_each(plan.layer(slot.layer).children, add);
  } else {
    add(child_of(plan, slot));
  }
  return out;
}

/// The rows of the experts by the plan, followed by the rows of the router's other choices.
OutputTensor grown_rows(const Model& model, const GrowthPlan& plan, const TensorSlot& slot, io::TensorInfo info,
                        const std::shared_ptr<const GrownPieces>& maker) {
  const Checkpoint::Entry stored = model.checkpoint.at(slot.name);
  const int64_t rows = model.config.rows_of(slot.role());
  const uint64_t row_bytes = stored.info->bytes / static_cast<uint64_t>(rows);
  OutputTensor out{std::move(info), {}};
  const auto copy_rows = [&](int64_t first, int64_t count) {
    out.pieces.push_back({.bytes = row_bytes * static_cast<uint64_t>(count),
                          .file = stored.file,
                          .offset = stored.info->offset + row_bytes * static_cast<uint64_t>(first)});
  };
  if (families::is_router(slot.role())) {
    out.pieces.push_back({.bytes = row_bytes * static_cast<uint64_t>(plan.experts_after),
                          .maker = maker,
                          .number = maker->number_of(slot)});
  } else {
    for (const Child& child : plan.layer(slot.layer).children) copy_rows(child.parent, 1);
  }
  if (rows > plan.experts_before) copy_rows(plan.experts_before, rows - plan.experts_before);
  return out;
}

/// The shape with its dimension of experts set to the new number.
io::TensorShape grown_shape(const TensorSlot& slot, const families::ModelConfig& before, int64_t experts) {
  io::TensorShape shape = slot.shape;
  if (families::has_rows(slot.role())) {
    int64_t& rows =
        shape.front() == before.rows_of(slot.role()) ? shape.front() : shape.back();  // [1, experts] of ernie4_5_moe
    rows += experts - before.num_experts;
  } else {
    shape.front() = shape.front() / before.num_experts * experts;
  }
  return shape;
}

TensorSlot renumbered(const TensorSlot& slot, int64_t expert) {
  TensorSlot out = slot;
  out.name = families::name_for_expert(slot, expert);
  out.expert = expert;
  return out;
}

/// Divides the units of an expert: rows of gate, up and their biases, columns of down.
void cut_units(TensorSlot& slot, int64_t parts) {
  const Role role = slot.role();
  if (parts == 1 || families::is_copied_whole(role) || role == Role::kExpertDownBias) return;
  const bool is_last = families::is_bias(role) || (role == Role::kExpertDown) != slot.rule->layout.transposed;
  slot.shape.at(slot.shape.size() - (is_last ? 1 : 2)) /= parts;
}

/// Slots [first, end) are the experts of one layer, sorted by expert; appends the same slots for every child.
void grow_own_tensors(std::span<const TensorSlot> run, const GrowthPlan& plan, std::vector<TensorSlot>& out) {
  const auto of_expert = [&](int64_t expert) { return std::ranges::equal_range(run, expert, {}, &TensorSlot::expert); };
  const auto& children = plan.layer(run.front().layer).children;
  for (size_t child = 0; child < children.size(); ++child) {
    for (const TensorSlot& slot : of_expert(children[child].parent))
      cut_units(out.emplace_back(renumbered(slot, static_cast<int64_t>(child))), plan.split);
  }
  for (const TensorSlot& slot : run) {  // tensors that longcat_flash saves for its zero experts
    if (slot.expert >= plan.experts_before)
      out.push_back(renumbered(slot, slot.expert - plan.experts_before + plan.experts_after));
  }
}

/// An upper bound of the number of slots.
size_t num_grown_slots(const Model& model, const GrowthPlan& plan) {
  const auto own =
      static_cast<size_t>(std::ranges::count_if(model.slots, [](const TensorSlot& slot) { return slot.expert >= 0; }));
  const auto before = static_cast<size_t>(plan.experts_before), after = static_cast<size_t>(plan.experts_after);
  return model.slots.size() - own + (own * after + before - 1) / before;
}

}  // namespace

const Child& child_of(const GrowthPlan& plan, const TensorSlot& slot) {
  return plan.layer(slot.layer).children.at(static_cast<size_t>(slot.expert));
}

std::string source_name(const GrowthPlan& plan, const TensorSlot& slot) {
  if (slot.expert < 0) return slot.name;
  if (slot.expert >= plan.experts_after)
    return families::name_for_expert(slot, slot.expert - plan.experts_after + plan.experts_before);
  return families::name_for_expert(slot, child_of(plan, slot).parent);
}

GrowthPlan with_all_layers(const Model& model, GrowthPlan plan) {
  return with_all_layers(model.layers_with_experts, model.config.num_layers, std::move(plan));
}

GrowthPlan with_all_layers(std::span<const int64_t> layers_with_experts, int64_t num_layers, GrowthPlan plan) {
  const auto known = [&](int64_t layer) { return std::ranges::find(plan.layers, layer, &LayerPlan::layer); };
  for (const int64_t layer : layers_with_experts) {
    if (known(layer) != plan.layers.end()) continue;
    if (plan.layers.empty()) {
      throw Error(ErrorCode::kUnsupported,
                  cat("layer ", layer, " has experts, but config.json counts ", num_layers,
                      " layers before it and says that all are dense (correct num_hidden_layers, or the key that says "
                      "which layers are dense)"));
    }
    const LayerPlan last = plan.layers.back();
    plan.layers.push_back({layer, last.children});
  }
  std::ranges::sort(plan.layers, {}, &LayerPlan::layer);
  return plan;
}

std::vector<TensorSlot> grown_slots(const Model& model, const GrowthPlan& plan) {
  std::vector<TensorSlot> slots;
  slots.reserve(num_grown_slots(model, plan));
  for (size_t i = 0; i < model.slots.size();) {
    const TensorSlot& slot = model.slots[i];
    size_t end = i + 1;
    if (slot.expert >= 0) {
      while (end < model.slots.size() && model.slots[end].expert >= model.slots[end - 1].expert &&
             model.slots[end].layer == slot.layer) {
        ++end;
      }
      grow_own_tensors(std::span(model.slots).subspan(i, end - i), plan, slots);
    } else {
      slots.push_back(slot);
      if (slot.rule->layout.stacked || families::has_rows(slot.role()))
        slots.back().shape = grown_shape(slot, model.config, plan.experts_after);
      if (slot.rule->layout.stacked) cut_units(slots.back(), plan.split);
    }
    i = end;
  }
  return slots;
}

std::vector<TensorSlot> grown_router_slots(const Model& model, const GrowthPlan& plan) {
  std::vector<TensorSlot> slots;
  for (const TensorSlot& slot : model.slots) {
    if (!families::is_router(slot.role())) continue;
    slots.push_back(slot);
    slots.back().shape = grown_shape(slot, model.config, plan.experts_after);
  }
  return slots;
}

namespace {

[[noreturn]] void refuse_unknown_purpose(const GrowthPlan& plan, const TensorSlot& slot) {
  const std::string_view what = plan.split > 1                    ? "a split"
                                : plan.down_factor != 1           ? "a scaled top-K"
                                : plan.expert_init.name == "copy" ? "the plan"
                                                                  : std::string_view(plan.expert_init.name);
  throw Error(ErrorCode::kUnsupported,
              cat("'", slot.name, "': the family file does not say what this tensor of an expert is for, and ", what,
                  " changes values by their purpose (choose expert-init copy, or give the tensors of experts their "
                  "roles in the family file: expert_gate, expert_up, expert_down ...)"));
}

}  // namespace

void check_values(const Model& model, const GrowthPlan& plan) {
  const bool only_copies = std::ranges::all_of(plan.layers, [&](const LayerPlan& layer) {
    return std::ranges::all_of(layer.children, [&](const Child& child) { return is_plain_copy(plan, child); });
  });
  if (only_copies) return;
  for (const TensorSlot& slot : model.slots) {
    if (!families::is_expert(slot.role()) || slot.role() == Role::kAttentionExpert) continue;
    const io::Dtype dtype = model.info_of(slot.name).dtype;
    if (slot.role() == Role::kExpertOther) refuse_unknown_purpose(plan, slot);
    if (slot.role() != Role::kExpertCompanion && io::is_float(dtype)) continue;
    const std::string stored =
        cat(model.config.is_quantised() ? cat("quantised with ", model.config.quantisation, " and ") : std::string(),
            "stored in ", io::dtype_name(dtype));
    const bool scales_down = plan.split == 1 && plan.down_factor != 1;
    const std::string_view dequantize = model.config.is_quantised() ? " add --dequantize, or" : "";
    const std::string advice =
        scales_down ? cat("a scaled top-K changes the down matrices (leave top-k out,", dequantize)
                    : cat(plan.split > 1 ? "a split" : cat("'", plan.expert_init.name, "'"),
                          " changes values (choose expert-init copy, which copies every byte,", dequantize);
    throw Error(ErrorCode::kUnsupported,
                cat("'", slot.name, "': the experts are ", stored, ", and ", advice,
                    dequantize.empty() ? " or expand the checkpoint in bf16)" : " expand the checkpoint in bf16)"));
  }
}

std::vector<OutputTensor> grown_weights(const Model& model, const GrowthPlan& plan,
                                        const std::vector<TensorSlot>& slots, const models::OptimizerState* state) {
  check_values(model, plan);
  const auto maker = std::make_shared<const GrownPieces>(model, plan, slots, state);
  std::vector<OutputTensor> outputs;
  outputs.reserve(slots.size());
  for (const TensorSlot& slot : slots) {
    const std::string name = source_name(plan, slot);
    io::TensorInfo info = output::tensor_info(slot.name, model.info_of(name).dtype, slot.shape);
    if (families::has_rows(slot.role())) {
      outputs.push_back(grown_rows(model, plan, slot, std::move(info), maker));
    } else if (is_grown(plan, slot)) {
      outputs.push_back(grown_experts(model, plan, slot, std::move(info), maker));
    } else if (model.quantised(name) != nullptr) {
      const uint64_t bytes = info.bytes;
      outputs.push_back(
          {std::move(info), {{.bytes = bytes, .maker = maker, .number = maker->number_of(slot), .cuttable = true}}});
    } else {
      outputs.push_back(output::copied_tensor(std::move(info), model.checkpoint.at(name)));
    }
  }
  return outputs;
}

}  // namespace coppice::grow
