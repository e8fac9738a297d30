#include "coppice/verify/names.h"

#include "coppice/families/packed_layout.h"

namespace coppice::verify {

using families::TensorSlot;

NamesIn::NamesIn(const families::Model& model) : model_(model) {
  for (const TensorSlot& slot : model.slots) {
    if (!families::is_expert(slot.role()))
      by_name_.emplace(families::name_in_any_layout(model.config, slot.name.view()), &slot);
  }
}

std::optional<std::string> NamesIn::find(const families::ModelConfig& config, const TensorSlot& slot) const {
  if (model_.checkpoint.contains(slot.name)) return std::string(slot.name.view());
  if (families::is_expert(slot.role())) return std::nullopt;
  const auto found = by_name_.find(families::name_in_any_layout(config, slot.name.view()));
  if (found == by_name_.end()) return std::nullopt;
  return std::string(found->second->name.view());
}

std::optional<io::Checkpoint::Entry> NamesIn::entry(const families::ModelConfig& config, const TensorSlot& slot) const {
  const auto name = find(config, slot);
  if (!name) return std::nullopt;
  return model_.checkpoint.at(*name);
}

}  // namespace coppice::verify
