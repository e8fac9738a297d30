#pragma once

// Rotary embeddings as the keys of a configuration describe them, for every family; families::Rope is what `nn` reads.

#include <map>
#include <string>
#include <string_view>

#include "coppice/base/json.h"
#include "coppice/families/family.h"

namespace coppice::verify::detail {

/// The keys, in both generations of transformers' files.
inline constexpr std::string_view kRopeKeys[] = {"rope_parameters", "rope_theta", "rope_scaling",
                                                 "partial_rotary_factor", "rope_local_base_freq"};

/// {"rope_type", "rope_theta", ...} by type of layer; under "" if all layers have the same. Keys that are left out get
/// transformers' defaults for `family`; without a family there are no defaults.
///
/// Source   modeling_rope_utils.py of transformers 5.17.0.
std::map<std::string, Json> ropes_of(const Json& object, const families::Family* family);

/// Whether both say the same for every type of layer, neither more nor less.
bool same_ropes(const std::map<std::string, Json>& a, const std::map<std::string, Json>& b);

}  // namespace coppice::verify::detail
