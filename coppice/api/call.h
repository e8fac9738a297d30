#pragma once

// Commands by name, for callers that have options as names and values: api.h and the Python package.

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/api/api.h"
#include "coppice/api/outcome.h"
#include "coppice/base/json.h"

namespace coppice::api {

/// An option as data.
struct OptionInfo {
  std::string name, help, type;  ///< type (of an item, in a list): "text", "path", "integer", "number", "flag", "json"
  bool positional = false, is_list = false;
  bool optional = false;  ///< of an operand: it may be left out
  Json fallback;          ///< its value if it is left out; null: none, or what the help says
};

/// The names of the commands.
std::vector<std::string_view> callable_commands();

/// One sentence: what the command does.
std::string_view summary_of(std::string_view command);

/// The options of a command, in the order of its help. Those that choose how the command line prints are not among them.
std::vector<OptionInfo> options_of(std::string_view command);

/// Does what the command does with these settings; operands are settings too, under their names in lower case. Names may
/// have `separator` between their words. One call at a time does its work; others wait.
///
/// Throws   Error{kUsage}: an option that the command does not have, with the nearest name; what the command throws.
Outcome call(std::string_view command, const Settings& settings, char separator = '-');

}  // namespace coppice::api
