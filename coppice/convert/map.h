#pragma once

// Where every tensor of a converted model comes from, and what would be lost on the way. Of configurations and names
// alone: nothing is read.

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
  kZeros,       ///< a part that the dense model has not, and that changes nothing at 0
  kOnes,        ///< one that changes the function at any value
  kRouter,      ///< rows from nothing
  kExperts,     ///< slices of the dense layer's matrix, scaled
  kShared,      ///< the first units of the dense layer's matrix
  kExpertMean,  ///< of the way back: the average of all experts' matrices
};

/// A tensor of the converted model.
struct MappedTensor {
  families::TensorSlot slot;
  Origin origin = Origin::kCopy;
  io::TensorName source;  ///< name in the dense model; of experts in one tensor, that of the gate matrix or of down
};

struct Mapping {
  families::ModelConfig config;  ///< of the converted model, by the whole table of its family
  std::vector<MappedTensor> tensors;
  std::vector<std::string> losses;  ///< what the family cannot hold, each a clause naming tensors or settings
};

/// The converted model's configuration and tensors. `slots` are those of the dense model.
///
/// Throws   Error{kFormat} where the dense model's configuration has what makes no sense.
Mapping map_to_moe(const families::ModelConfig& dense, std::span<const families::TensorSlot> slots,
                   const ConversionPlan& plan);

/// The way back: a dense model of the family `to` whose feed-forward layers are the averages of the experts.
///
/// Throws   Error{kUnsupported} where dense layers and experts differ in width.
Mapping map_to_dense(const families::ModelConfig& moe, std::span<const families::TensorSlot> slots,
                     std::string_view to);

/// The dense role that an expert's matrix is a slice of: kDenseGate for kExpertGate.
families::Role dense_role(families::Role expert);

}  // namespace coppice::convert
