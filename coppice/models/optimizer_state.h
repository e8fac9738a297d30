#pragma once

// The trainer's part of a checkpoint, `trainer/`: fp32 master weights and Adam's moments by tensor.

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/io/safetensors.h"

namespace coppice::models {

/// `trainer/optimizer-0000i-of-0000N.safetensors`, keys `<tensor name on disk>.{master,exp_avg,exp_avg_sq,step}`: F32
/// with the tensor's shape; the step is I64 [1], or [E] for router tensors, whose rows have separate counts. F32
/// weights have no master; the selection bias, which Adam does not train, and tensors without elements have no entry.
///
/// Memory   headers only.
class OptimizerState {
 public:
  /// The optimizer state of `model`; none if it has no trainer/.
  /// Throws   Error{kFormat}: missing or extra shards, files or keys, all listed; Error{kShape}: another shape or
  ///          dtype, all listed; Error{kUnsupported}: a torch optimizer.pt.
  static std::optional<OptimizerState> open(const families::Model& model);

  OptimizerState(OptimizerState&&) = default;  // no copies: entries_ points into shards_

  /// `<weight>.<name>`, such as name "exp_avg".
  io::Checkpoint::Entry at(std::string_view weight, std::string_view name) const;
  bool has(std::string_view weight, std::string_view name) const;
  bool has_master(std::string_view tensor) const;

 private:
  OptimizerState() = default;

  std::vector<io::SafetensorsFile> shards_;
  std::map<std::string, io::Checkpoint::Entry, std::less<>> entries_;
};

/// A tensor of the state that belongs to one of the weights.
struct OptimizerTensor {
  std::string_view name;  ///< master, exp_avg, exp_avg_sq, step
  io::Dtype dtype;
  io::TensorShape shape;
};
/// The tensors of the state that belong to `slot` in a model with `experts` experts; `weights` is its stored dtype.
std::vector<OptimizerTensor> optimizer_tensors(const families::TensorSlot& slot, io::Dtype weights, int64_t experts);
/// Whether each row or expert has its own step count: routers and stacks of experts.
bool counts_rows(const families::TensorSlot& slot);

}  // namespace coppice::models
