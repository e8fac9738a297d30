#include "coppice/grow/grown_optimizer.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>

#include "coppice/base/text.h"
#include "coppice/grow/child_piece_detail.h"
#include "coppice/grow/grow.h"
#include "coppice/grow/grown_weights.h"
#include "coppice/matrix/stored_matrix.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/models/expert_layout.h"

namespace coppice::grow {
namespace {

using families::TensorSlot;
using io::Checkpoint;
using io::Dtype;
using matrix::MatrixSource;
using matrix::SourceMatrices;
using methods::Child;
using methods::Moment;
using models::OptimizerState;
using output::OutputTensor;

Moment moment_of(std::string_view name) {
  return name == methods::moment_name(Moment::kFirst) ? Moment::kFirst : Moment::kSecond;
}

std::vector<float> floats_of(const Checkpoint::Entry& entry) {
  std::vector<float> values(static_cast<size_t>(entry.info->elements()));
  io::to_f32(Dtype::kF32, entry.data(), values);
  return values;
}

int64_t step_at(const Checkpoint::Entry& entry, uint32_t index) {
  int64_t step = 0;
  std::memcpy(&step, entry.data().data() + index * sizeof step, sizeof step);
  return step;
}

/// `bytes` as floats; the allocator aligned them for any scalar.
std::span<float> as_floats(std::span<std::byte> bytes) {
  return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
}

/// Expands the optimizer state of one model; holds what all kinds of tensors use.
struct Grower {
  const OptimizerState& state;
  const families::Model& model;
  const plan::GrowthPlan& plan;

  std::function<void(std::span<std::byte>)> expert_master(const TensorSlot& slot) const {
    return [*this, &slot](std::span<std::byte> out) {
      SourceMatrices sources;
      grow_expert(plan, slot.layer, child_of(plan, slot), slot.role(), source_of(slot, "master", sources), Dtype::kF32,
                  out);
    };
  }

  std::function<void(std::span<std::byte>)> expert_moment(const TensorSlot& slot, Moment kind) const {
    return [*this, &slot, kind](std::span<std::byte> out) {
      SourceMatrices sources;
      const MatrixSource weights = [&](uint32_t expert) {
        const std::string name = families::tensor_name(model.config, slot.role(), slot.layer, expert);
        return sources.read(state.has_master(name) ? state.at(name, "master") : model.checkpoint.at(name));
      };
      grow_expert_moment(plan, slot.layer, child_of(plan, slot), slot.role(), kind,
                         source_of(slot, methods::moment_name(kind), sources), weights, as_floats(out));
    };
  }

  std::function<void(std::span<std::byte>)> router_master(const TensorSlot& slot) const {
    return [*this, &slot](std::span<std::byte> out) {
      SourceMatrices sources;
      grow_router(plan, slot.layer, slot.role(), sources.read(state.at(slot.name, "master")), out,
                  model.config.routing.has_router_bias);
    };
  }

  std::function<void(std::span<std::byte>)> router_moment(const TensorSlot& slot, Moment kind) const {
    return [*this, &slot, kind](std::span<std::byte> out) {
      const auto entry = state.at(slot.name, methods::moment_name(kind));
      const int64_t cols = entry.info->elements() / plan.experts_before;
      grow_router_moment(plan, slot.layer, kind, floats_of(entry), cols, as_floats(out));
    };
  }

  /// One step count for an expert's tensor, one per row of a router, one per expert of a stacked tensor.
  std::function<void(std::span<std::byte>)> steps(const TensorSlot& slot) const {
    return [*this, &slot](std::span<std::byte> out) {
      std::vector<int64_t> after;
      if (models::counts_rows(slot)) {
        const Checkpoint::Entry before = state.at(slot.name, "step");
        for (const Child& child : plan.layer(slot.layer).children) {
          after.push_back(grow_step(plan, child, step_at(before, child.parent)));
        }
      } else {
        const Checkpoint::Entry before = state.at(source_name(plan, slot), "step");
        after.push_back(grow_step(plan, child_of(plan, slot), step_at(before, 0)));
      }
      std::memcpy(out.data(), after.data(), out.size());
    };
  }

  /// Master weights or a moment of a stacked tensor: one piece per child, copied from its parent's if `copies` says so.
  template <class Copies>
  OutputTensor stack(const TensorSlot& slot, io::TensorInfo info, std::string_view name, const Copies& copies) const {
    const Checkpoint::Entry source = state.at(slot.name, name);
    OutputTensor out{std::move(info), {}};
    TensorSlot before = slot;
    before.shape = source.info->shape;
    const auto original = [source, before, experts = plan.experts_before](uint32_t expert) -> matrix::StoredExpert {
      return {source, models::expert_slice(before, source.info->bytes, experts, expert)};
    };
    for (const Child& child : plan.layer(slot.layer).children) {
      if (copies(child)) {
        const auto slice = original(child.parent).slice;
        out.pieces.push_back({.bytes = slice.bytes, .file = source.file, .offset = source.info->offset + slice.offset});
      } else if (name == "master") {
        const output::OutputPiece piece = detail::child_piece(plan, slot, Dtype::kF32);
        const auto make = [this_plan = &plan, &slot, child, before, original] {
          const auto rows = [original](uint32_t expert, const models::ExpertMatrix& place) {
            return matrix::stored_matrix(original(expert), place);
          };
          return detail::child_fill(*this_plan, child, before, slot, Dtype::kF32, rows);
        };
        out.pieces.push_back(output::computed_piece(piece.bytes, make, piece.cuttable));
      } else {
        out.pieces.push_back(stacked_moment(slot, before, child, name));
      }
    }
    return out;
  }

  output::OutputPiece stacked_moment(const TensorSlot& slot, const TensorSlot& before, const Child& child,
                                     std::string_view name) const {
    const Moment kind = moment_of(name);
    uint64_t bytes = sizeof(float);
    for (size_t i = 1; i < slot.shape.size(); ++i) bytes *= static_cast<uint64_t>(slot.shape[i]);
    output::PieceMaker::Fill fill = [*this, &slot, before, child, name, kind](uint64_t, std::span<std::byte> out) {
      const auto places = models::expert_matrices(slot, plan.experts_after);
      const auto places_before = models::expert_matrices(before, plan.experts_before);
      const auto weight = state.has_master(slot.name) ? state.at(slot.name, "master") : model.checkpoint.at(slot.name);
      SourceMatrices held;
      std::deque<std::vector<std::byte>> gathered;
      const auto matrix_of = [&](const Checkpoint::Entry& entry, const models::ExpertMatrix& place, uint32_t expert) {
        held.hold(entry);
        const auto slice = models::expert_slice(before, entry.info->bytes, plan.experts_before, expert);
        const auto width = io::dtype_bytes(entry.info->dtype);
        auto& matrix = gathered.emplace_back(static_cast<size_t>(place.rows * place.cols) * width);
        models::gather(place, width, entry.data().subspan(slice.offset, slice.bytes), matrix);
        return matrix::MatrixBytes{entry.info->dtype, place.rows, place.cols, matrix};
      };
      for (size_t i = 0; i < places.size(); ++i) {
        const MatrixSource moments = [&](uint32_t expert) {
          return matrix_of(state.at(slot.name, name), places_before[i], expert);
        };
        const MatrixSource weights = [&](uint32_t expert) { return matrix_of(weight, places_before[i], expert); };
        std::vector<float> values(static_cast<size_t>(places[i].rows * places[i].cols));
        grow_expert_moment(plan, slot.layer, child, places[i].role, kind, moments, weights, values);
        models::scatter(places[i], sizeof(float), std::as_bytes(std::span(values)), out);
        gathered.clear();
      }
    };
    return output::computed_piece(bytes, [fill] { return fill; });
  }

  /// A source that gives the same tensor of the state for the same matrix for any original expert.
  MatrixSource source_of(const TensorSlot& slot, std::string_view name, SourceMatrices& sources) const {
    return [this, &slot, name, &sources](uint32_t expert) {
      return sources.read(state.at(families::tensor_name(model.config, slot.role(), slot.layer, expert), name));
    };
  }
};

}  // namespace

std::vector<OutputTensor> grown_optimizer(const families::Model& model, const OptimizerState& state,
                                          const plan::GrowthPlan& plan, const std::vector<TensorSlot>& slots) {
  const Grower grower{state, model, plan};
  const bool keeps_originals = !methods::optimizer_init(plan.optimizer_state.name).touches_original && plan.split == 1;
  std::vector<OutputTensor> outputs;
  for (const TensorSlot& slot : slots) {
    const bool router = families::is_router(slot.role()), stacked = slot.rule->layout.stacked;
    const bool own = families::is_expert(slot.role()) && !stacked;
    const std::string source = source_name(plan, slot);
    const auto copies_master = [&plan](const Child& child) { return is_plain_copy(plan, child); };
    const auto copies_moment = [keeps_originals](const Child& child) { return keeps_originals && child.copy == 0; };
    const bool copies_weights = !router && !stacked && (!own || copies_master(child_of(plan, slot)));
    const bool copies_moments = !router && !stacked && (!own || copies_moment(child_of(plan, slot)));
    for (const models::OptimizerTensor& tensor :
         models::optimizer_tensors(slot, model.checkpoint.at(source).info->dtype, plan.experts_after)) {
      io::TensorInfo info = output::tensor_info(cat(slot.name, ".", tensor.name), tensor.dtype, tensor.shape);
      const Moment kind = moment_of(tensor.name);
      if (tensor.name == "master" ? copies_weights : copies_moments) {
        outputs.push_back(output::copied_tensor(std::move(info), state.at(source, tensor.name)));
      } else if (tensor.name == "step") {
        outputs.push_back(output::computed_tensor(std::move(info), grower.steps(slot)));
      } else if (stacked) {
        outputs.push_back(tensor.name == "master" ? grower.stack(slot, std::move(info), tensor.name, copies_master)
                                                  : grower.stack(slot, std::move(info), tensor.name, copies_moment));
      } else if (tensor.name == "master") {
        outputs.push_back(
            output::computed_tensor(std::move(info), router ? grower.router_master(slot) : grower.expert_master(slot)));
      } else {
        outputs.push_back(output::computed_tensor(
            std::move(info), router ? grower.router_moment(slot, kind) : grower.expert_moment(slot, kind)));
      }
    }
  }
  return outputs;
}

}  // namespace coppice::grow
