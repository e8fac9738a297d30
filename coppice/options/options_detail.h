#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/options/options.h"

namespace coppice::detail {

/// The TOML key of an option: its name; for the operand MODEL: model.
std::string key_of(const OptionSpec& spec);

/// Whether the command has an option --quiet of its own.
bool has_quiet(std::span<const OptionSpec> specs);

/// Parses `texts` into the option. Throws what its reader throws, with `subject` in front.
void assign(OptionSpec& spec, const std::vector<std::string>& texts, std::string_view subject);

/// Sets fields from a table whose keys are options, or tables of options under their dotted prefix.
///
/// Adds to `given` the options whose value changed.
/// Returns  the options that were set.
/// Throws   Error{kUsage}: every unknown key, with the nearest spelling.
std::vector<const OptionSpec*> assign_settings(std::span<OptionSpec> specs, const Json& settings,
                                               std::string_view source, Given& given);

std::string help_text(std::string_view command, std::string_view summary, std::span<const OptionSpec> specs);

}  // namespace coppice::detail
