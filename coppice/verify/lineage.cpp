#include "coppice/verify/lineage.h"

#include <algorithm>
#include <span>
#include <string_view>

#include "coppice/base/text.h"
#include "coppice/io/model_directory.h"
#include "coppice/verify/same_value_detail.h"

namespace coppice::verify {
namespace {

/// Keys of the newest step that are not compared: the expansion is recomputed from them, or they describe the program
/// that wrote it.
constexpr std::string_view kTakenAsRead[] = {"command", "version", "seed", "source_digest", "methods", "settings"};
constexpr std::string_view kMethods[] = {"select",          "expert_init", "router_init", "balance_bias",
                                         "optimizer_state", "layers",      "parameters"};
/// Keys with which a run records its lineage-unique routing.
constexpr std::string_view kRoutingNote[] = {"routing", "share", "seed", "share_steps"};
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

LineageDifferences compare_lineages(const Json& wanted, const Json& found, bool grown) {
  LineageDifferences out;
  const std::string file = io::kLineageFile;
  const Json::Array &was = wanted.at(kSteps).items(), &is = found.at(kSteps).items();
  const size_t earlier = grown ? was.size() - 1 : was.size();
  const bool same_steps = was.size() == is.size() &&
                          std::equal(was.begin(), was.begin() + static_cast<std::ptrdiff_t>(earlier), is.begin());
  if (!same_steps) {
    out.problems.push_back(cat(file, ": its ", grown ? "earlier " : "", "steps differ from those of the model before"));
  } else if (grown) {
    compare_newest(was.back(), is.back(), cat(file, ": step ", earlier), out.problems);
  }
  const bool trained = grown && found.at(kSteps).items().back().at("command") == Json("train");
  std::vector<std::string_view> apart = {kSteps};
  if (trained) {
    apart.insert(apart.end(), std::begin(kRoutingNote), std::end(kRoutingNote));
    if (const Json* share = found.find("share"))
      out.not_compared.push_back(
          cat("the share of tokens with lineage-unique routing in ", file, " (", share->dump(), ")"));
  }
  compare_members(wanted, found, apart, file, out.problems);
  return out;
}

}  // namespace coppice::verify
