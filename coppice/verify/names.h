#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "coppice/families/match.h"

namespace coppice::verify {

/// Finds tensors of a model by the names that they have in another one, which may be of the other layout
/// (families/packed_layout.h). Experts are found by their matrices, not here, where they have other names.
///
/// Memory   the names of what lies outside experts.
class NamesIn {
 public:
  explicit NamesIn(const families::Model& model);

  /// The tensor's name in this model; nothing if it is not there.
  std::optional<std::string> find(const families::ModelConfig& config, const families::TensorSlot& slot) const;
  std::optional<io::Checkpoint::Entry> entry(const families::ModelConfig& config,
                                             const families::TensorSlot& slot) const;

 private:
  const families::Model& model_;
  std::map<std::string, const families::TensorSlot*, std::less<>> by_name_;
};

}  // namespace coppice::verify
