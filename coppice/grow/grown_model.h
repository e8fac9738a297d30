#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/match.h"
#include "coppice/models/optimizer_state.h"
#include "coppice/output/tensors.h"
#include "coppice/plan/plan.h"

namespace coppice::grow {

/// The expanded model as a list of tensors, not computed yet: `expand` writes them, `verify` compares them. The tensors
/// refer to the members above them and to `model`, which must outlive this object.
struct GrownModel {
  plan::GrowthPlan plan;
  Json config;
  std::vector<families::TensorSlot> slots;
  std::optional<models::OptimizerState> state;  ///< of the model before
  std::vector<output::OutputTensor> weights;    ///< one for each slot
  std::optional<std::vector<output::OutputTensor>> optimizer;
  /// Of every file of weights. Of a quantised model it is that of the model before, with the names of all experts:
  /// torchao describes each tensor there.
  std::map<std::string, std::string> metadata;

  /// Throws   Error{kFormat, kShape, kUnsupported} for a configuration, a trainer/ or quantised experts that cannot be
  ///          grown by the plan.
  GrownModel(const families::Model& model, const plan::GrowthPlan& given);
  GrownModel(const GrownModel&) = delete;
  GrownModel& operator=(const GrownModel&) = delete;
};

/// The metadata of all files of a checkpoint in one map. Lists of tensors are joined.
std::map<std::string, std::string> metadata_of(const io::Checkpoint& checkpoint);

/// A plan that changes nothing.
plan::GrowthPlan unchanged_plan(const families::Model& model);

}  // namespace coppice::grow
