#pragma once

// What a conversion has to know of a family beyond its table: how a dense model differs from a plain decoder, and what
// a Mixture of Experts can express of that.

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "coppice/families/family.h"

namespace coppice::convert {

/// A dense family. Fallbacks are those of transformers 5.17.0.
struct DenseFamily {
  std::string_view model_type;
  std::string_view to;  ///< the family of the Mixture of Experts, if the user names none
  std::optional<int64_t> bos, eos, pad;
};
std::span<const DenseFamily> dense_families();

enum class WindowKeys {
  kNone,      ///< no local attention
  kPlain,     ///< sliding_window: all layers or none
  kSwitched,  ///< use_sliding_window too: all layers or none
  kByLayer,   ///< layer_types too
};

/// Whether its norms multiply by 1 + weight, which no family of `moe_families` does.
bool has_centred_norms(const families::Family& family);

/// A family that dense models are converted to.
struct MoeFamily {
  std::string_view model_type;
  std::string_view to;  ///< the dense family of the way back, if the user names none
  WindowKeys windows = WindowKeys::kNone;
};
std::span<const MoeFamily> moe_families();

/// Throws   Error{kUnsupported} naming what there is.
const DenseFamily& dense_family(std::string_view model_type);
/// Throws   Error{kUsage} with the nearest.
const MoeFamily& moe_family(std::string_view model_type);

/// The row of a Mixture of Experts that is to become the dense family `to` (empty: the row's own).
///
/// Throws   Error{kUnsupported} for models that cannot be averaged; Error{kUsage} for no dense family, or one whose norms
///          mean something else.
const MoeFamily& family_to_average(std::string_view model_type, std::string_view to);

}  // namespace coppice::convert
