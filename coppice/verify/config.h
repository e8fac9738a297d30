#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/model_config.h"

namespace coppice::verify {

struct ConfigDifferences {
  std::vector<std::string> problems;        ///< one sentence per key whose meaning differs
  std::vector<std::string> added;           ///< keys that are new and that coppice does not read
  std::vector<std::string> null_or_absent;  ///< keys that one file sets to null and the other leaves out

  /// Descriptions of what could not be compared, each a part of a sentence.
  std::vector<std::string> not_compared(std::string_view file) const;
};

/// Compares config.json by meaning. No differences are: another order of keys, moved keys (rope_theta into
/// rope_parameters, torch_dtype to dtype), another name that the family has for a key, keys left out that had
/// transformers' default (Family::left_out), and the version of the program that wrote the file. Rotary embeddings are
/// equal only if neither file says more than the other.
///
/// Throws   nothing because of the configurations: what cannot be read becomes a problem.
ConfigDifferences compare_configs(const families::ModelConfig& wanted, const families::ModelConfig& found);

/// The same for files whose keys have no such rules (generation_config.json).
ConfigDifferences compare_settings(std::string_view file, const Json& wanted, const Json& found);

}  // namespace coppice::verify
