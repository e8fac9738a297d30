#pragma once

// Classes of routers for which copying experts has the same effect.

#include <string>
#include <string_view>
#include <vector>

#include "coppice/families/model_config.h"

namespace coppice::families {

enum class RoutingClass : uint8_t {
  kSoftmaxRenormalised,  ///< S1
  kSoftmax,              ///< S2
  kTopKSoftmax,          ///< S3
  kSigmoidRenormalised,  ///< S4
  kSigmoid,              ///< S5
  kSoftmaxBiased,        ///< S6
  kTrailingChoices,      ///< S7
  kSqrtSoftplus,         ///< S8
  kLogitBiased,          ///< S9
  kSharedChoices,        ///< S10
  kSparseMixer,
  kCapacity,
  kUnknown,  ///< a family file that does not say enough
};

/// Properties of a class when every expert is replaced by m copies with equal router rows.
struct RoutingClassInfo {
  RoutingClass routing_class;
  std::string_view name;     ///< "S1"
  std::string_view routing;  ///< how it chooses experts and computes gates
  bool exact_top_1;          ///< plain copies keep the function with top-1
  std::string_view scaled;   ///< what else must change when top-K is multiplied by m; "" if nothing
  bool can_scale;            ///< a larger top-K can keep the function
  /// How copies can be kept from being chosen, so that the function is kept; "" if they cannot.
  std::string_view dormant;
};

RoutingClass routing_class(const Routing& routing);
/// The keys that the family file would have to define; empty if the class is known.
std::string missing_routing_keys(const Routing& routing);
/// All routings that are possible if the family file does not define everything.
std::vector<Routing> possible_routings(const Routing& routing);
const RoutingClassInfo& routing_class_info(RoutingClass c);

/// The routing of a family with its switches at their defaults.
Routing default_routing(const Family& family);

/// How a family stores its experts: "a tensor for each expert", "stacked [experts, in, out], gate and up interleaved".
std::string layout_text(const Family& family);

}  // namespace coppice::families
