#pragma once

// The classes of routers that copying experts treats alike.

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
  kSparseMixer,
  kCapacity,
  kUnknown,  ///< a family file that does not say enough
};

/// What is known of a class before any model is grown; m copies of every expert, with their routers' rows.
struct RoutingClassInfo {
  RoutingClass routing_class;
  std::string_view name;     ///< "S1"
  std::string_view routing;  ///< how it chooses and weighs
  bool exact_top_1;          ///< plain copies keep the function where one expert answers
  std::string_view scaled;   ///< what else keeps it when top-K becomes m times top-K; "" if nothing else is needed
  bool can_scale;            ///< top-K can be raised so that the function is kept
  std::string_view
      dormant;  ///< how copies can be kept from being chosen, so that the function is kept; "" if they cannot
};

RoutingClass routing_class(const Routing& routing);
/// What the family file would have to say; empty if all is known that the class depends on.
std::string missing_routing_keys(const Routing& routing);
/// Every routing that it can be: what `config.json` and family say, and the family file may not.
std::vector<Routing> possible_routings(const Routing& routing);
const RoutingClassInfo& routing_class_info(RoutingClass c);

/// The routing of a family whose configuration has no key but what it must, so that its switches have their fallbacks.
Routing default_routing(const Family& family);

/// How a family stores its experts: "a tensor for each expert", "stacked [experts, in, out], gate and up interleaved".
std::string layout_text(const Family& family);

}  // namespace coppice::families
