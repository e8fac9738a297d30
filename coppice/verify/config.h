#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/model_config.h"

namespace coppice::verify {

struct ConfigDifferences {
  std::vector<std::string> problems;        ///< a sentence for each key whose meaning differs
  std::vector<std::string> added;           ///< keys that are new and that coppice does not read
  std::vector<std::string> null_or_absent;  ///< keys that one file sets to null and the other leaves out

  /// What there was nothing to compare with, a sentence's part each.
  std::vector<std::string> not_compared(std::string_view file) const;
};

/// Compares config.json by what it says: keys in another order, moved (rope_theta into rope_parameters, torch_dtype to
/// dtype), under another name that the family has for them, or left out where they had the value that transformers takes
/// for granted (Family::left_out), are no differences; nor is the version of the program that wrote it. Rotary
/// embeddings are equal only if neither file says more than the other.
///
/// Throws   nothing about the configurations: what cannot be read is a problem.
ConfigDifferences compare_configs(const families::ModelConfig& wanted, const families::ModelConfig& found);

/// The same of files whose keys have no such rules (generation_config.json).
ConfigDifferences compare_settings(std::string_view file, const Json& wanted, const Json& found);

}  // namespace coppice::verify
