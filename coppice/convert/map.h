#pragma once

// Where every tensor of a converted model comes from, and what would be left out. Uses only configurations and names;
// no tensor is read.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coppice/convert/plan.h"
#include "coppice/families/match.h"

namespace coppice::convert {

enum class Origin {
  kCopy,        ///< the tensor of the dense model
  kPlusOne,     ///< its values plus 1: norms that multiply by 1 + weight
  kEmbeddings,  ///< its values times sqrt(hidden_size)
  kZeros,       ///< a tensor that the dense model does not have and that has no effect at 0
  kOnes,        ///< a new tensor that changes the function at any value
  kRouter,      ///< new router rows
  kExperts,     ///< slices of the dense layer's matrix, scaled
  kShared,      ///< the first units of the dense layer's matrix
  kExpertMean,  ///< in a conversion to a dense model: the average of all experts' matrices
};

/// A tensor of the converted model.
struct MappedTensor {
  families::TensorSlot slot;
  Origin origin = Origin::kCopy;
  /// Name in the dense model; for experts stacked in one tensor, the name of the gate or down matrix.
  io::TensorName source;
};

struct Mapping {
  families::ModelConfig config;  ///< the converted model's configuration, read by its family's table
  std::vector<MappedTensor> tensors;
  std::vector<std::string> losses;  ///< what the family cannot express, each a clause naming tensors or settings
};

/// The converted model's configuration and tensors. `slots` are those of the dense model.
///
/// Throws   Error{kFormat} if the dense model's configuration is not valid.
Mapping map_to_moe(const families::ModelConfig& dense, std::span<const families::TensorSlot> slots,
                   const ConversionPlan& plan);

/// The mapping to a dense model of the family `to` whose feed-forward layers are the averages of the experts.
///
/// Throws   Error{kUnsupported} if dense layers and experts differ in width.
Mapping map_to_dense(const families::ModelConfig& moe, std::span<const families::TensorSlot> slots,
                     std::string_view to);

/// The dense role that an expert's matrix is a slice of: kDenseGate for kExpertGate.
families::Role dense_role(families::Role expert);

}  // namespace coppice::convert
