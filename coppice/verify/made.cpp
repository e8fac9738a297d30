#include "coppice/verify/made.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <tuple>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/grow/grown_weights.h"
#include "coppice/models/expert_layout.h"
#include "coppice/verify/difference_detail.h"
#include "coppice/verify/expert_content.h"
#include "coppice/verify/names.h"

namespace coppice::verify {
namespace {

using families::Model;
using families::Role;
using families::TensorSlot;
using grow::GrownModel;
using io::Checkpoint;
using models::ExpertMatrix;
using output::OutputTensor;

/// The place of each matrix of each expert, for a model with another layout than the one before. The list is built on
/// first use, because most models have the tensors under the expected names.
class MatrixPlaces {
 public:
  explicit MatrixPlaces(const Model& model) : model_(model) {}

  /// The matrix in [out, in] order; none if it is missing.
  std::optional<std::vector<std::byte>> read(const TensorSlot& like, int64_t expert, const ExpertMatrix& place,
                                             io::Dtype dtype, std::set<const TensorSlot*>& seen) const {
    std::call_once(listed_, [this] { list(); });
    for (const int64_t owner : {expert, int64_t{-1}}) {
      const auto found = places_.find({like.layer, owner, place.role});
      if (found == places_.end()) continue;
      const auto& [slot, at] = found->second;
      const Checkpoint::Entry entry = model_.checkpoint.at(slot->name);
      if (entry.info->dtype != dtype || at.rows != place.rows || at.cols != place.cols) return std::nullopt;
      seen.insert(slot);
      const auto slice = models::expert_slice(*slot, entry.info->bytes, model_.config.num_experts, expert);
      std::vector<std::byte> stored(slice.bytes);
      entry.file->read(entry.info->offset + slice.offset, stored);
      std::vector<std::byte> matrix(static_cast<size_t>(at.rows * at.cols) * io::dtype_bytes(dtype));
      models::gather(at, io::dtype_bytes(dtype), stored, matrix);
      return matrix;
    }
    return std::nullopt;
  }

 private:
  void list() const {
    for (const TensorSlot& slot : model_.slots) {
      if (!families::is_expert(slot.role())) continue;
      for (const ExpertMatrix& place : models::expert_matrices(slot, model_.config.num_experts))
        places_[{slot.layer, slot.rule->layout.stacked ? -1 : slot.expert, place.role}] = {&slot, place};
    }
  }

  const Model& model_;
  mutable std::once_flag listed_;
  mutable std::map<std::tuple<int64_t, int64_t, Role>, std::pair<const TensorSlot*, ExpertMatrix>> places_;
};

/// The message for a tensor with other bytes.
std::string other_bytes(const OutputTensor& wanted, std::string_view maker) {
  const bool copied =
      std::ranges::all_of(wanted.pieces, [](const output::OutputPiece& piece) { return piece.file != nullptr; });
  return copied ? cat("its bytes changed, but ", maker, " copies it")
                : cat("its bytes differ from what ", maker, " computes from the model before");
}

/// The result of comparing one tensor.
struct Outcome {
  std::string problem;
  std::set<const TensorSlot*> seen;  ///< tensors of `after` with other names that contain it
};

Outcome compare_matrices(const OutputTensor& wanted, const TensorSlot& slot, const GrownModel& made,
                         const MatrixPlaces& places, std::string_view maker) {
  Outcome outcome;
  const auto matrices = models::expert_matrices(slot, made.plan.experts_after);
  if (matrices.empty()) return {cat("'", slot.name, "': is missing"), {}};
  const size_t width = io::dtype_bytes(wanted.info.dtype);
  std::vector<std::byte> bytes, matrix;
  for (size_t i = 0; i < wanted.pieces.size(); ++i) {
    const int64_t expert = slot.rule->layout.stacked ? static_cast<int64_t>(i) : slot.expert;
    bytes.resize(wanted.pieces[i].bytes);
    wanted.pieces[i].fill(0, bytes);
    for (const ExpertMatrix& place : matrices) {
      matrix.resize(static_cast<size_t>(place.rows * place.cols) * width);
      models::gather(place, width, bytes, matrix);
      const auto found = places.read(slot, expert, place, wanted.info.dtype, outcome.seen);
      const std::string what = cat("'", slot.name, "': ", families::role_name(place.role), " of expert ", expert);
      if (!found) return {cat("'", slot.name, "': is missing"), {}};
      if (*found != matrix && outcome.problem.empty()) outcome.problem = cat(what, ": ", other_bytes(wanted, maker));
    }
  }
  return outcome;
}

/// The places of all tensors in the model after.
struct Places {
  Places(const Model& before, const Model& model)
      : config(before.config), after(model), names(model), matrices(model) {}

  const families::ModelConfig& config;  ///< configuration with the expected names
  const Model& after;
  NamesIn names;
  MatrixPlaces matrices;
};

/// A head that is tied to the embeddings may be saved or left out.
std::string tied_head_problem(const OutputTensor& head, const std::vector<TensorSlot>& slots, const Places& places) {
  const auto embedding =
      std::ranges::find_if(slots, [](const TensorSlot& slot) { return slot.role() == Role::kEmbedding; });
  const bool is_tied = places.after.config.tied && embedding != slots.end();
  const bool is_same = is_tied && detail::difference(head, places.names.entry(places.config, *embedding), "").empty();
  return is_same ? std::string() : cat("'", head.info.name, "': is missing");
}

Outcome compare_tensor(const OutputTensor& wanted, const TensorSlot& slot, const GrownModel& made, const Places& places,
                       std::string_view maker) {
  const auto found = places.names.entry(places.config, slot);
  if (found || wanted.info.bytes == 0) return {detail::difference(wanted, found, other_bytes(wanted, maker)), {}};
  if (slot.role() == Role::kLmHead) return {tied_head_problem(wanted, made.slots, places), {}};
  if (families::is_expert(slot.role())) return compare_matrices(wanted, slot, made, places.matrices, maker);
  return {cat("'", wanted.info.name, "': is missing"), {}};
}

void count(const OutputTensor& tensor, const TensorSlot& slot, VerifyResult& result) {
  if (families::has_rows(slot.role())) return;
  if (!families::is_expert(slot.role())) {
    ++result.identical;
    return;
  }
  for (const output::OutputPiece& piece : tensor.pieces)
    ++(piece.file != nullptr ? result.experts_original : result.experts_changed);
}

/// Reports tensors that the plan does not make.
void report_strangers(const GrownModel& made, const Places& places, const std::set<const TensorSlot*>& seen,
                      VerifyResult& result) {
  const Model& after = places.after;
  std::set<std::string_view> known;
  std::set<std::string, std::less<>> under_other_names;
  for (const TensorSlot& slot : made.slots) {
    known.insert(slot.name);
    if (after.checkpoint.contains(slot.name)) continue;
    if (const auto name = places.names.find(places.config, slot)) under_other_names.insert(*name);
  }
  for (const TensorSlot& slot : after.slots) {
    if (known.contains(slot.name) || under_other_names.contains(slot.name.view()) || seen.contains(&slot)) continue;
    const auto entry = after.checkpoint.at(slot.name);
    if (entry.info->bytes == 0) continue;
    if (slot.role() == Role::kLmHead && after.config.tied) {
      const auto embedding =
          std::ranges::find_if(after.slots, [](const TensorSlot& s) { return s.role() == Role::kEmbedding; });
      if (embedding != after.slots.end() && same_tensor(entry, after.checkpoint.at(embedding->name))) continue;
    }
    result.problems.push_back(cat("'", slot.name, "': is new; the model before has no such tensor"));
  }
}

/// Opens the optimizer state; if it is broken, reports a problem and returns none.
std::optional<models::OptimizerState> open_state(const Model& model, VerifyResult& result, bool& broken) {
  try {
    return models::OptimizerState::open(model);
  } catch (const Error& error) {
    if (error.code == ErrorCode::kInterrupted || error.code == ErrorCode::kIo) throw;
    result.problems.emplace_back(error.what());
    broken = true;
    return std::nullopt;
  }
}

void compare_optimizer(const GrownModel& made, const Model& after, const Maker& maker, size_t threads,
                       VerifyResult& result) {
  bool broken = false;
  const auto found = open_state(after, result, broken);
  if (broken) return;
  if (!found && made.optimizer && !maker.complete) {
    result.not_compared.push_back(cat(io::kTrainerFolder, "/, which is missing afterwards"));
    return;
  }
  if (found.has_value() != made.optimizer.has_value()) {
    result.problems.push_back(
        cat("'", io::kTrainerFolder, "/': ", found ? "is new; the model before has no optimizer state" : "is missing"));
    return;
  }
  if (!found) return;
  std::vector<std::string> problems(made.optimizer->size());
  parallel_for(problems.size(), threads, [&](size_t i) {
    check_interrupt();
    const OutputTensor& wanted = (*made.optimizer)[i];
    const std::string_view name = wanted.info.name;
    const size_t dot = name.rfind('.');
    std::optional<Checkpoint::Entry> entry;
    if (found->has(name.substr(0, dot), name.substr(dot + 1)))
      entry = found->at(name.substr(0, dot), name.substr(dot + 1));
    problems[i] = detail::difference(wanted, entry, other_bytes(wanted, maker.name));
  });
  for (std::string& problem : problems) {
    if (problem.empty()) {
      ++result.optimizer_tensors;
    } else {
      result.problems.push_back(cat(io::kTrainerFolder, "/: ", problem));
    }
  }
}

/// A row (or value) of each expert, in fp32.
struct Rows {
  std::vector<float> values;
  size_t cols = 1;

  static std::optional<Rows> read(const Model& model, Role role, int64_t layer) {
    for (const TensorSlot& slot : model.slots) {
      if (slot.layer != layer || slot.role() != role) continue;
      Rows rows{model.checkpoint.read_f32(slot.name), 1};
      rows.cols = rows.values.size() / static_cast<size_t>(model.config.rows_of(role));
      return rows;
    }
    return std::nullopt;
  }
  std::span<const float> row(int64_t i) const { return std::span(values).subspan(static_cast<size_t>(i) * cols, cols); }
};

}  // namespace

void count_rows(const Model& before, const Model& after, int64_t layer, const std::vector<int64_t>& parents,
                VerifyResult& result) {
  for (const Role role : {Role::kRouter, Role::kRouterBias, Role::kSelectionBias}) {
    const auto was = Rows::read(before, role, layer), is = Rows::read(after, role, layer);
    if (!was || !is) continue;
    for (size_t child = 0; child < parents.size(); ++child) {
      if (parents[child] < 0) continue;
      const bool same = std::ranges::equal(was->row(parents[child]), is->row(static_cast<int64_t>(child)));
      if (role == Role::kRouter) {
        ++(same ? result.router_rows_equal : result.router_rows_changed);
      } else if (!same) {
        ++result.biases_changed;
      }
    }
  }
}

bool has_router_of(const GrownModel& made, const Model& before, const Model& after) {
  const NamesIn names(after);
  for (size_t i = 0; i < made.slots.size(); ++i) {
    if (made.slots[i].role() == Role::kRouter)
      return detail::difference(made.weights[i], names.entry(before.config, made.slots[i]), "").empty();
  }
  return true;
}

void compare_made(const GrownModel& made, const Model& before, const Model& after, const Maker& maker, size_t threads,
                  Progress& progress, VerifyResult& result) {
  const Places places(before, after);
  std::vector<Outcome> outcomes(made.weights.size());
  parallel_for(outcomes.size(), threads, [&](size_t i) {
    check_interrupt();
    outcomes[i] = compare_tensor(made.weights[i], made.slots[i], made, places, maker.name);
    progress.advance(made.weights[i].info.bytes);
  });
  std::set<const TensorSlot*> seen;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    if (outcomes[i].problem.empty()) {
      count(made.weights[i], made.slots[i], result);
    } else {
      result.problems.push_back(outcomes[i].problem);
      ++result.tensors_changed;
    }
    seen.insert(outcomes[i].seen.begin(), outcomes[i].seen.end());
  }
  report_strangers(made, places, seen, result);
  compare_optimizer(made, after, maker, threads, result);
  const bool comparable =
      before.config.router_rows() - before.config.num_experts == after.config.router_rows() - after.config.num_experts;
  for (const methods::LayerPlan& layer : made.plan.layers) {
    const bool is_there = std::ranges::find(after.layers_with_experts, layer.layer) != after.layers_with_experts.end();
    if (!is_there) {
      result.problems.push_back(cat("layer ", layer.layer, ": has no experts, but the plan has parents for it"));
      continue;
    }
    std::vector<int64_t>& parents = result.parents[layer.layer];
    for (const methods::Child& child : layer.children) parents.push_back(child.parent);
    if (comparable) count_rows(before, after, layer.layer, parents, result);
  }
}

}  // namespace coppice::verify
