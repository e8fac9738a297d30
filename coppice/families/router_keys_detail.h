#pragma once

// Keys of a configuration that say how the router works, held against what the family's table says.

#include <string_view>
#include <vector>

#include "coppice/families/config_reader_detail.h"
#include "coppice/families/family.h"

namespace coppice::families::detail {

/// `key`, or the other name of the same setting that is there in its place (n_group and num_expert_group).
///
/// Throws   Error{kFormat} if both are there and differ.
std::string_view alias_present(const ConfigReader& in, std::string_view key);

/// All names of the setting, `key` itself among them.
std::vector<std::string_view> aliases_of(std::string_view key);

/// p of the norm that the K gates are divided by; 0 for null: by nothing.
double read_gate_norm(const ConfigReader& in, std::string_view key);

/// Holds the configuration's words for the router (scoring_func, topk_method ...) to the family's.
///
/// Throws   Error{kUnsupported} naming a key with a value that coppice does not know or that is not this router's, and
///          a key of a model with a family file that the file does not name and that changes what the router computes.
void check_router_keys(const ConfigReader& in, const Family& family, GateFunction gate);

/// Throws   Error{kUnsupported} if the configuration has router groups, and the family has none or does not say.
void check_no_groups(const ConfigReader& in, const Family& family);

}  // namespace coppice::families::detail
