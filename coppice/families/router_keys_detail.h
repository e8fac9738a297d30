#pragma once

// Checks keys of a configuration that describe the router against the family's table.

#include <string_view>
#include <vector>

#include "coppice/families/config_reader_detail.h"
#include "coppice/families/family.h"

namespace coppice::families::detail {

/// `key`, or the other name of the same setting if that is present instead (n_group and num_expert_group).
///
/// Throws   Error{kFormat} if both are there and differ.
std::string_view alias_present(const ConfigReader& in, std::string_view key);

/// All names of the setting, including `key`.
std::vector<std::string_view> aliases_of(std::string_view key);

/// The p of the norm that the K gates are divided by; 0 for null (not divided).
double read_gate_norm(const ConfigReader& in, std::string_view key);

/// Checks the configuration's descriptions of the router (scoring_func, topk_method ...) against the family.
///
/// Throws   Error{kUnsupported} naming a key with a value that is unknown or does not fit this router. With a family
///          file, also naming a key that changes what the router computes and that the file does not name.
void check_router_keys(const ConfigReader& in, const Family& family, GateFunction gate);

/// Throws   Error{kUnsupported} if the configuration has router groups, but the family has none or does not define it.
void check_no_groups(const ConfigReader& in, const Family& family);

}  // namespace coppice::families::detail
