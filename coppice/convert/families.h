#pragma once

// What a conversion must know about a family besides its table: how a dense model differs from a plain decoder, and
// which of these differences a Mixture of Experts can express.

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "coppice/families/family.h"

namespace coppice::convert {

/// A dense family. Default values are those of transformers 5.17.0.
struct DenseFamily {
  std::string_view model_type;
  std::string_view to;  ///< the default family of the Mixture of Experts
  std::optional<int64_t> bos, eos, pad;
};
std::span<const DenseFamily> dense_families();

enum class WindowKeys {
  kNone,      ///< no local attention
  kPlain,     ///< sliding_window; applies to all layers or none
  kSwitched,  ///< also use_sliding_window; applies to all layers or none
  kByLayer,   ///< also layer_types
};

/// Whether the family's norms multiply by 1 + weight, which those of `moe_families` do not.
bool has_centred_norms(const families::Family& family);

/// A family that dense models are converted to.
struct MoeFamily {
  std::string_view model_type;
  std::string_view to;  ///< the default dense family to average to
  WindowKeys windows = WindowKeys::kNone;
};
std::span<const MoeFamily> moe_families();

/// Throws   Error{kUnsupported} naming the known families.
const DenseFamily& dense_family(std::string_view model_type);
/// Throws   Error{kUsage} with the nearest name.
const MoeFamily& moe_family(std::string_view model_type);

/// The row of a Mixture of Experts to be averaged to the dense family `to` (empty: the row's default).
///
/// Throws   Error{kUnsupported} for models that cannot be averaged; Error{kUsage} if `to` is not a dense family or its
///          norms have another meaning.
const MoeFamily& family_to_average(std::string_view model_type, std::string_view to);

}  // namespace coppice::convert
