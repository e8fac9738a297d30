#pragma once

// The TOML files of tables/, which are part of the program: cmake/embed_families.cmake writes the definition.

#include <span>
#include <string_view>

namespace coppice::families::detail {

struct FamilyText {
  std::string_view name, text;  ///< "afmoe.toml" and its contents
};
std::span<const FamilyText> family_texts();

}  // namespace coppice::families::detail
