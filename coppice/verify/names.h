#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "coppice/families/match.h"

namespace coppice::verify {

/// Finds tensors of a model by their names in another one, which may have the other layout (families/packed_layout.h).
/// Experts with other names are not found here but by their matrices.
///
/// Memory   the names of tensors outside experts.
class NamesIn {
 public:
  explicit NamesIn(const families::Model& model);

  /// The tensor's name in this model; none if it is missing.
  std::optional<std::string> find(const families::ModelConfig& config, const families::TensorSlot& slot) const;
  std::optional<io::Checkpoint::Entry> entry(const families::ModelConfig& config,
                                             const families::TensorSlot& slot) const;

 private:
  const families::Model& model_;
  std::map<std::string, const families::TensorSlot*, std::less<>> by_name_;
};

}  // namespace coppice::verify
