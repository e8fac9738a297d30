#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "coppice/dist/world.h"

namespace coppice::train {

inline bool is_first(const dist::World* world) { return !world || world->rank() == 0; }

/// Runs `act` on the first rank; on one rank there is no other.
///
/// Ranks    collective over `world` (null: one rank).
/// Throws   on every rank what `act` throws (dist::all_or_none).
void on_first_rank(dist::World* world, const std::function<void()>& act);
/// The text of the first rank's `make` on every rank.
std::string from_first_rank(dist::World* world, const std::function<std::string()>& make);

/// Checks that all ranks have the same `text`: they must not act on different plans.
///
/// Throws   Error{kInternal} on every rank if one has another.
void require_same(dist::World* world, const std::string& what, const std::string& text);

}  // namespace coppice::train
