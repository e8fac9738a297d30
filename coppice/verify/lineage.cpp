#include "coppice/verify/lineage.h"

#include <algorithm>
#include <span>
#include <string_view>

#include "coppice/base/text.h"
#include "coppice/io/model_directory.h"
#include "coppice/plan/lineage.h"
#include "coppice/verify/same_value_detail.h"

namespace coppice::verify {
namespace {

/// Keys of the newest step that are not compared: the expansion is recomputed from them, or they describe the program
/// that wrote it.
constexpr std::string_view kTakenAsRead[] = {"command", "version", "seed", "source_digest", "methods", "settings"};
constexpr std::string_view kMethods[] = {"select",          "expert_init", "router_init", "balance_bias",
                                         "optimizer_state", "layers",      "parameters"};
constexpr std::string_view kCommands[] = {"expand", "train"};
constexpr const char* kSteps = "steps";

bool contains(std::span<const std::string_view> list, std::string_view key) {
  return std::ranges::find(list, key) != list.end();
}

/// Compares the members of two objects, except those in `but`.
void compare_members(const Json& wanted, const Json& found, std::span<const std::string_view> but,
                     std::string_view where, std::vector<std::string>& problems) {
  for (const auto& [key, value] : wanted.members()) {
    const Json* is = found.find(key);
    if (contains(but, key) || (is != nullptr && detail::same_value(value, *is))) continue;
    problems.push_back(cat(where, ": '", key, "' is ", is != nullptr ? is->dump().substr(0, 60) : "absent", ", wanted ",
                           value.dump().substr(0, 60)));
  }
  for (const auto& [key, value] : found.members()) {
    if (!contains(but, key) && wanted.find(key) == nullptr)
      problems.push_back(
          cat(where, ": '", key, "' is ", value.dump().substr(0, 60), "; wanted no such key after an expansion"));
  }
}

void compare_newest(const Json& wanted, const Json& found, const std::string& where,
                    std::vector<std::string>& problems) {
  compare_members(wanted, found, kTakenAsRead, where, problems);
  for (const auto& [key, value] : found.at("methods").members()) {
    if (!contains(kMethods, key)) problems.push_back(cat(where, ": 'methods' has '", key, "', which is not a method"));
  }
  if (const std::string_view command = found.at("command").as_string(); !contains(kCommands, command))
    problems.push_back(cat(where, ": 'command' is '", command, "'; wanted one that expands models: expand, train"));
}

}  // namespace

LineageDifferences compare_lineages(const Json& wanted, const Json& lineage, bool grown) {
  LineageDifferences out;
  const std::string file = io::kLineageFile;
  const bool trained = grown && lineage.at(kSteps).items().back().at("command") == Json("train");
  const Json found = trained ? plan::without_run_notes(lineage) : lineage;
  const Json::Array &was = wanted.at(kSteps).items(), &is = found.at(kSteps).items();
  const size_t earlier = grown ? was.size() - 1 : was.size();
  const bool same_steps = was.size() == is.size() &&
                          std::equal(was.begin(), was.begin() + static_cast<std::ptrdiff_t>(earlier), is.begin());
  if (!same_steps) {
    out.problems.push_back(cat(file, ": its ", grown ? "earlier " : "", "steps differ from those of the model before"));
  } else if (grown) {
    compare_newest(was.back(), is.back(), cat(file, ": step ", earlier), out.problems);
  }
  if (const double share = trained ? plan::lineage_share(lineage) : 0; share > 0)
    out.not_compared.push_back(cat("the share of tokens with lineage-unique routing in ", file, " (", share, ")"));
  constexpr std::string_view kApart[] = {kSteps};
  compare_members(wanted, found, kApart, file, out.problems);
  return out;
}

}  // namespace coppice::verify
