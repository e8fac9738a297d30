#include "coppice/upcycle/optimizer_state.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <set>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/expert_layout.h"
#include "coppice/upcycle/child_piece_detail.h"
#include "coppice/upcycle/grown_weights.h"
#include "coppice/upcycle/optimizer_init.h"

namespace coppice::upcycle {
namespace {

namespace fs = std::filesystem;
using families::Role;
using families::TensorSlot;
using io::Checkpoint;
using io::Dtype;

constexpr size_t kListed = 20;

std::string shard_name(size_t index, size_t count) {
  const auto five = [](size_t n) {
    const std::string digits = std::to_string(n);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  return cat("optimizer-", five(index), "-of-", five(count), ".safetensors");
}

void refuse_torch_state(const io::ModelDirectory& files, const fs::path& name) {
  if (!files.has(name)) return;
  throw Error(ErrorCode::kUnsupported,
              cat(files.path() / name, ": an optimizer state as torch pickles it; wanted ", kTrainerFolder, "/",
                  shard_name(1, 1),
                  " (move it away: the weights are then expanded alone, and training starts with a fresh optimizer)"));
}

/// The shards of trainer/, complete and nothing beside them.
std::vector<io::SafetensorsFile> open_shards(const io::ModelDirectory& files) {
  const fs::path folder = files.path() / kTrainerFolder;
  const auto names = files.names(kTrainerFolder);
  std::set<std::string> found(names.begin(), names.end());
  if (found.erase(kTrainerFile) == 0) {
    throw Error(ErrorCode::kFormat, cat(folder, ": no ", kTrainerFile,
                                        "; the checkpoint is incomplete (remove the folder to "
                                        "expand the weights alone)"));
  }
  std::vector<io::SafetensorsFile> shards;
  for (size_t i = 1; i <= found.size(); ++i) {
    const std::string name = shard_name(i, found.size());
    if (found.contains(name)) shards.push_back(files.open_tensors(fs::path(kTrainerFolder) / name));
  }
  if (shards.empty() || shards.size() != found.size()) {
    throw Error(ErrorCode::kFormat,
                cat(folder, ": holds ", join_some(std::vector(found.begin(), found.end()), kListed), " beside ",
                    kTrainerFile, "; wanted a complete set of optimizer-0000i-of-0000N.safetensors and nothing else"));
  }
  return shards;
}

struct Part {
  std::string_view name;
  Dtype dtype;
  io::TensorShape shape;
};

/// Routers and stacks of experts: each row or expert counts its own steps.
bool counts_rows(const TensorSlot& slot) { return is_router(slot.role()) || slot.rule->layout.stacked; }

std::vector<Part> expected_parts(const TensorSlot& slot, Dtype weights, int64_t experts) {
  const bool empty = std::find(slot.shape.begin(), slot.shape.end(), 0) != slot.shape.end();
  if (slot.role() == Role::kSelectionBias || empty) return {};
  std::vector<Part> parts = {{"exp_avg", Dtype::kF32, slot.shape},
                             {"exp_avg_sq", Dtype::kF32, slot.shape},
                             {"step", Dtype::kI64, {counts_rows(slot) ? experts : 1}}};
  if (weights != Dtype::kF32) parts.insert(parts.begin(), {"master", Dtype::kF32, slot.shape});
  return parts;
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

/// `bytes`, which the allocator aligned for any scalar, as floats.
std::span<float> as_floats(std::span<std::byte> bytes) {
  return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
}

/// Grows the state of one model: what `OptimizerState::grow` shares between its parts.
struct Grower {
  const OptimizerState& state;
  const families::Model& model;
  const GrowthPlan& plan;

  std::function<void(std::span<std::byte>)> expert_master(const TensorSlot& slot) const {
    return [*this, &slot](std::span<std::byte> out) {
      SourceMatrices sources;
      grow_expert(plan, slot.layer, child_of(plan, slot), slot.role(), parts_of(slot, "master", sources), Dtype::kF32,
                  out);
    };
  }

  std::function<void(std::span<std::byte>)> expert_moment(const TensorSlot& slot, MomentKind kind) const {
    return [*this, &slot, kind](std::span<std::byte> out) {
      SourceMatrices sources;
      const MatrixSource weights = [&](uint32_t expert) {
        const std::string name = families::tensor_name(model.config, slot.role(), slot.layer, expert);
        return sources.read(state.has_master(name) ? state.at(name, "master") : model.checkpoint.at(name));
      };
      grow_expert_moment(plan, slot.layer, child_of(plan, slot), slot.role(), kind,
                         parts_of(slot, kind == MomentKind::kExpAvg ? "exp_avg" : "exp_avg_sq", sources), weights,
                         as_floats(out));
    };
  }

  std::function<void(std::span<std::byte>)> router_master(const TensorSlot& slot) const {
    return [*this, &slot](std::span<std::byte> out) {
      SourceMatrices sources;
      grow_router(plan, slot.layer, slot.role(), sources.read(state.at(slot.name, "master")), out,
                  model.config.routing.has_router_bias);
    };
  }

  std::function<void(std::span<std::byte>)> router_moment(const TensorSlot& slot, MomentKind kind) const {
    return [*this, &slot, kind](std::span<std::byte> out) {
      const auto entry = state.at(slot.name, kind == MomentKind::kExpAvg ? "exp_avg" : "exp_avg_sq");
      const int64_t cols = entry.info->elements() / plan.experts_before;
      grow_router_moment(plan, slot.layer, kind, floats_of(entry), cols, as_floats(out));
    };
  }

  /// One step for an expert's tensor, one a row for a router's, one an expert for a stack.
  std::function<void(std::span<std::byte>)> steps(const TensorSlot& slot) const {
    return [*this, &slot](std::span<std::byte> out) {
      std::vector<int64_t> after;
      if (counts_rows(slot)) {
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

  /// Master or moment of a tensor that stacks experts: a piece for each child, its parent's where `copies` says so.
  template <class Copies>
  OutputTensor stack(const TensorSlot& slot, io::TensorInfo info, std::string_view part, const Copies& copies) const {
    const Checkpoint::Entry source = state.at(slot.name, part);
    OutputTensor out{std::move(info), {}};
    TensorSlot before = slot;
    before.shape = source.info->shape;
    const auto original = [source, before, experts = plan.experts_before](uint32_t expert) -> detail::StoredExpert {
      return {source, families::expert_slice(before, source.info->bytes, experts, expert)};
    };
    for (const Child& child : plan.layer(slot.layer).children) {
      if (copies(child)) {
        const auto slice = original(child.parent).slice;
        out.pieces.push_back({.bytes = slice.bytes, .file = source.file, .offset = source.info->offset + slice.offset});
      } else if (part == "master") {
        const OutputPiece piece = detail::child_piece(plan, slot, Dtype::kF32);
        const auto make = [this_plan = &plan, &slot, child, before, original] {
          return detail::child_fill(*this_plan, child, before, slot, Dtype::kF32, original);
        };
        out.pieces.push_back(computed_piece(piece.bytes, make, piece.cuttable));
      } else {
        out.pieces.push_back(stacked_moment(slot, before, child, part));
      }
    }
    return out;
  }

  OutputPiece stacked_moment(const TensorSlot& slot, const TensorSlot& before, const Child& child,
                             std::string_view part) const {
    const MomentKind kind = part == "exp_avg" ? MomentKind::kExpAvg : MomentKind::kExpAvgSq;
    uint64_t bytes = sizeof(float);
    for (size_t i = 1; i < slot.shape.size(); ++i) bytes *= static_cast<uint64_t>(slot.shape[i]);
    PieceMaker::Fill fill = [*this, &slot, before, child, part, kind](uint64_t, std::span<std::byte> out) {
      const auto places = families::expert_matrices(slot, plan.experts_after);
      const auto places_before = families::expert_matrices(before, plan.experts_before);
      const auto weight = state.has_master(slot.name) ? state.at(slot.name, "master") : model.checkpoint.at(slot.name);
      SourceMatrices held;
      std::deque<std::vector<std::byte>> gathered;
      const auto matrix_of = [&](const Checkpoint::Entry& entry, const families::ExpertMatrix& place, uint32_t expert) {
        held.hold(entry);
        const auto slice = families::expert_slice(before, entry.info->bytes, plan.experts_before, expert);
        const auto width = io::dtype_bytes(entry.info->dtype);
        auto& matrix = gathered.emplace_back(static_cast<size_t>(place.rows * place.cols) * width);
        families::gather(place, width, entry.data().subspan(slice.offset, slice.bytes), matrix);
        return MatrixBytes{entry.info->dtype, place.rows, place.cols, matrix};
      };
      for (size_t i = 0; i < places.size(); ++i) {
        const MatrixSource moments = [&](uint32_t expert) {
          return matrix_of(state.at(slot.name, part), places_before[i], expert);
        };
        const MatrixSource weights = [&](uint32_t expert) { return matrix_of(weight, places_before[i], expert); };
        std::vector<float> values(static_cast<size_t>(places[i].rows * places[i].cols));
        grow_expert_moment(plan, slot.layer, child, places[i].role, kind, moments, weights, values);
        families::scatter(places[i], sizeof(float), std::as_bytes(std::span(values)), out);
        gathered.clear();
      }
    };
    return computed_piece(bytes, [fill] { return fill; });
  }

  /// The same part of the same matrix of any original expert.
  MatrixSource parts_of(const TensorSlot& slot, std::string_view part, SourceMatrices& sources) const {
    return [this, &slot, part, &sources](uint32_t expert) {
      return sources.read(state.at(families::tensor_name(model.config, slot.role(), slot.layer, expert), part));
    };
  }
};

}  // namespace

std::optional<OptimizerState> OptimizerState::open(const families::Model& model) {
  const io::ModelDirectory& files = model.checkpoint.files();
  const fs::path folder = files.path() / kTrainerFolder;
  refuse_torch_state(files, "optimizer.pt");
  refuse_torch_state(files, fs::path(kTrainerFolder) / "optimizer.pt");
  if (!files.has_folder(kTrainerFolder)) return std::nullopt;

  OptimizerState state;
  state.shards_ = open_shards(files);
  for (const io::SafetensorsFile& shard : state.shards_) {
    for (const io::TensorInfo& info : shard.tensors()) {
      if (state.entries_.emplace(info.name, Checkpoint::Entry{&shard, &info}).second) continue;
      throw Error(ErrorCode::kFormat,
                  cat(shard.path(), ": '", info.name, "' is in another shard too; wanted each tensor once"));
    }
  }

  std::vector<std::string> missing, misshapen;
  std::set<std::string> extra;
  for (const auto& [name, entry] : state.entries_) extra.insert(name);
  for (const TensorSlot& slot : model.slots) {
    const Dtype weights = model.checkpoint.at(slot.name).info->dtype;
    for (const Part& part : expected_parts(slot, weights, model.config.num_experts)) {
      const std::string key = cat(slot.name, ".", part.name);
      const auto found = state.entries_.find(key);
      if (found == state.entries_.end()) {
        missing.push_back(key);
        continue;
      }
      extra.erase(key);
      const io::TensorInfo& info = *found->second.info;
      if (info.dtype == part.dtype && info.shape == part.shape) continue;
      misshapen.push_back(cat("'", key, "' is ", io::dtype_name(info.dtype), " ", shape_text(info.shape), ", wanted ",
                              io::dtype_name(part.dtype), " ", shape_text(part.shape)));
    }
  }
  if (!missing.empty() || !extra.empty()) {
    std::string message = cat(folder, ": the optimizer state does not fit the model");
    if (!missing.empty()) message += cat("; missing: ", join_some(missing, kListed));
    if (!extra.empty())
      message += cat("; not of this model: ", join_some(std::vector(extra.begin(), extra.end()), kListed));
    throw Error(ErrorCode::kFormat, message + " (remove the folder to expand the weights alone)");
  }
  if (!misshapen.empty()) throw Error(ErrorCode::kShape, cat(folder, ": ", join_some(misshapen, kListed, "; ")));
  return state;
}

Checkpoint::Entry OptimizerState::at(std::string_view tensor, std::string_view part) const {
  const auto found = entries_.find(cat(tensor, ".", part));
  if (found != entries_.end()) return found->second;
  throw Error(ErrorCode::kNotFound, cat("optimizer state: no '", tensor, ".", part, "'"));
}

bool OptimizerState::has(std::string_view tensor, std::string_view part) const {
  return entries_.contains(cat(tensor, ".", part));
}

bool OptimizerState::has_master(std::string_view tensor) const { return has(tensor, "master"); }

std::vector<OutputTensor> OptimizerState::grow(const families::Model& model, const GrowthPlan& plan,
                                               const std::vector<TensorSlot>& slots) const {
  const Grower grower{*this, model, plan};
  const bool keeps_originals = !optimizer_init(plan.optimizer_state.name).touches_original && plan.split == 1;
  std::vector<OutputTensor> outputs;
  for (const TensorSlot& slot : slots) {
    const bool router = is_router(slot.role()), stacked = slot.rule->layout.stacked;
    const bool own = families::is_expert(slot.role()) && !stacked;
    const std::string source = source_name(plan, slot);
    const auto copies_master = [&plan](const Child& child) { return is_plain_copy(plan, child); };
    const auto copies_moment = [keeps_originals](const Child& child) { return keeps_originals && child.copy == 0; };
    const bool copies_weights = !router && !stacked && (!own || copies_master(child_of(plan, slot)));
    const bool copies_moments = !router && !stacked && (!own || copies_moment(child_of(plan, slot)));
    for (const Part& part : expected_parts(slot, model.checkpoint.at(source).info->dtype, plan.experts_after)) {
      io::TensorInfo info = tensor_info(cat(slot.name, ".", part.name), part.dtype, part.shape);
      const MomentKind kind = part.name == "exp_avg" ? MomentKind::kExpAvg : MomentKind::kExpAvgSq;
      if (part.name == "master" ? copies_weights : copies_moments) {
        outputs.push_back(copied_tensor(std::move(info), at(source, part.name)));
      } else if (part.name == "step") {
        outputs.push_back(computed_tensor(std::move(info), grower.steps(slot)));
      } else if (stacked) {
        outputs.push_back(part.name == "master" ? grower.stack(slot, std::move(info), part.name, copies_master)
                                                : grower.stack(slot, std::move(info), part.name, copies_moment));
      } else if (part.name == "master") {
        outputs.push_back(
            computed_tensor(std::move(info), router ? grower.router_master(slot) : grower.expert_master(slot)));
      } else {
        outputs.push_back(computed_tensor(
            std::move(info), router ? grower.router_moment(slot, kind) : grower.expert_moment(slot, kind)));
      }
    }
  }
  return outputs;
}

io::ShardPlan plan_optimizer_shards(std::vector<io::TensorInfo> tensors, uint64_t max_shard_bytes) {
  io::ShardPlan plan = plan_output(std::move(tensors), max_shard_bytes, "optimizer");
  for (size_t i = 0; i < plan.shards.size(); ++i) plan.shards[i].file = shard_name(i + 1, plan.shards.size());
  return plan;
}

}  // namespace coppice::upcycle
