#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/model_config.h"

namespace coppice::verify {

struct ConfigDifferences {
  std::vector<std::string> problems;  ///< a sentence for each key whose meaning differs
  std::vector<std::string> added;     ///< keys that are new and that coppice does not read
};

/// Compares config.json by what it says: keys in another order, moved (rope_theta into rope_parameters, torch_dtype to
/// dtype), under another name that the family has for them, or left out where they had the value that transformers takes
/// for granted, are no differences; nor is the version of the program that wrote it.
///
/// Throws   nothing about the configurations: what cannot be read is a problem.
ConfigDifferences compare_configs(const families::ModelConfig& wanted, const families::ModelConfig& found);

/// The same of files whose keys have no such rules (generation_config.json).
ConfigDifferences compare_settings(std::string_view file, const Json& wanted, const Json& found);

}  // namespace coppice::verify
