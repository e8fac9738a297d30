#pragma once

#include <cstdlib>
#include <filesystem>

namespace coppice::data {

/// ${COPPICE_CACHE:-$HOME/.cache/coppice}, where tools/setup puts its Python environments and the demo its text; empty if
/// neither variable is set.
inline std::filesystem::path cache_directory() {
  if (const char* set = std::getenv("COPPICE_CACHE"); set != nullptr && *set != '\0') return set;
  const char* home = std::getenv("HOME");
  return home == nullptr ? std::filesystem::path() : std::filesystem::path(home) / ".cache" / "coppice";
}

}  // namespace coppice::data
