#pragma once

// The trainer's part of a checkpoint, `trainer/`: fp32 master weights and Adam's moments by tensor, and how they grow.

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/io/safetensors.h"
#include "coppice/upcycle/output_tensors.h"
#include "coppice/upcycle/plan.h"

namespace coppice::upcycle {

inline constexpr const char* kTrainerFolder = "trainer";
inline constexpr const char* kTrainerFile = "trainer.json";

/// `trainer/optimizer-0000i-of-0000N.safetensors`, keys `<tensor name on disk>.{master,exp_avg,exp_avg_sq,step}`: F32
/// in the tensor's shape, the step I64 [1], or [E] for router tensors, whose rows count alone. F32 weights have no
/// master; the selection bias, which Adam does not train, and tensors without elements have no entry.
///
/// Memory   headers only.
class OptimizerState {
 public:
  /// The state beside `model`; none if it has no trainer/.
  /// Throws   Error{kFormat}: missing or extra shards, files or keys, all listed; Error{kShape}: another shape or
  ///          dtype, all listed; Error{kUnsupported}: an optimizer.pt of torch.
  static std::optional<OptimizerState> open(const families::Model& model);

  OptimizerState(OptimizerState&&) = default;  // no copies: entries_ points into shards_

  /// `<tensor>.<part>`, such as part "exp_avg".
  io::Checkpoint::Entry at(std::string_view tensor, std::string_view part) const;
  bool has(std::string_view tensor, std::string_view part) const;
  bool has_master(std::string_view tensor) const;

  /// Every tensor of the grown state. `slots` are the grown model's; `model`, `plan` and this object outlive the
  /// result.
  std::vector<OutputTensor> grow(const families::Model& model, const GrowthPlan& plan,
                                 const std::vector<families::TensorSlot>& slots) const;

 private:
  OptimizerState() = default;

  std::vector<io::SafetensorsFile> shards_;
  std::map<std::string, io::Checkpoint::Entry, std::less<>> entries_;
};

/// The shards of an optimizer state, named as `open` wants them also where there is only one.
io::ShardPlan plan_optimizer_shards(std::vector<io::TensorInfo> tensors, uint64_t max_shard_bytes);

}  // namespace coppice::upcycle
