#include "coppice/report/attachments.h"

#include <algorithm>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/toml.h"
#include "coppice/families/limits.h"
#include "coppice/report/sections_detail.h"

namespace coppice::report {
namespace {

namespace fs = std::filesystem;

std::map<int64_t, std::vector<uint32_t>> parents_of(const JsonReader& by_layer) {
  std::map<int64_t, std::vector<uint32_t>> out;
  if (!by_layer.json().is_object()) return out;
  for (const auto& [layer, list] : by_layer.members()) {
    const auto number = methods::layer_number(layer);
    if (!number || !list.json().is_array()) continue;
    auto& parents = out[*number];
    for (const JsonReader& parent : list.items()) {
      parents.push_back(static_cast<uint32_t>(parent.integer(0, families::kMaxExperts - 1)));
    }
  }
  return out;
}

Routing routing_of(const JsonReader& tokens) {
  Routing out;
  for (const auto& [domain, layers] : tokens.members()) {
    for (const auto& [layer, counts] : layers.members()) {
      const auto number = methods::layer_number(layer);
      if (!number) continue;
      auto& row = out[std::string(domain)][*number];
      for (const JsonReader& count : counts.items()) row.push_back(count.as_double());
    }
  }
  return out;
}

// expert_share of one arm of a demo's result.json: [domain][index of the MoE layer][expert].
Routing routing_of_demo(const RunRecord& run, const JsonReader& arm) {
  std::set<int64_t> moe_layers;
  for (const auto& [tag, points] : run.series) {
    if (const auto found = detail::layer_tag(tag)) moe_layers.insert(found->first);
  }
  const std::vector<int64_t> numbers(moe_layers.begin(), moe_layers.end());
  Routing out;
  const auto shares = arm.find("expert_share");
  if (!shares) return out;
  for (const auto& [domain, layers] : shares->members()) {
    size_t index = 0;
    for (const JsonReader& layer : layers.items()) {
      auto& row = out[std::string(domain)][index < numbers.size() ? numbers[index] : static_cast<int64_t>(index)];
      ++index;
      for (const JsonReader& share : layer.items()) row.push_back(share.as_double());
    }
  }
  return out;
}

std::optional<JsonReader> read_ours(const fs::path& path, std::string_view key) {
  if (!fs::is_regular_file(path)) return std::nullopt;
  JsonReader json = JsonReader::read(path);
  return json.find(key) ? std::optional(json) : std::nullopt;
}

std::optional<plan::Scores> read_scores(const fs::path& path) {
  if (!fs::is_regular_file(path)) return std::nullopt;
  return plan::Scores::read(path);
}

void add_growth(GrowthRecord record, Attachments& out) {
  if (record.scores || !record.parents.empty()) out.growths.push_back(std::move(record));
}

// RUN/growth-step-00001000/ with scores.json and plan.toml.
void add_growths_of(const RunRecord& run, Attachments& out) {
  std::set<fs::path> folders;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run.directory, none)) {
    if (entry.path().filename().string().starts_with("growth-step-")) folders.insert(entry.path());
  }
  for (const auto& folder : folders) {
    GrowthRecord record{.name = cat(run.name, ", ", folder.filename().string())};
    record.scores = read_scores(folder / "scores.json");
    if (fs::is_regular_file(folder / "plan.toml")) {
      const JsonReader plan(read_toml(folder / "plan.toml"), (folder / "plan.toml").string());
      if (const auto parents = plan.find("parents")) record.parents = parents_of(*parents);
    }
    if (record.parents.empty()) record.parents = lineage_parents(run.lineage, 0);
    add_growth(std::move(record), out);
  }
}

void add_routing(const RunRecord& run, Attachments& out) {
  for (const JsonReader& event : run.events) {
    const auto tokens = event.find("tokens");
    if (event.at("event").json() == Json("routing") && tokens) out.routing[run.name] = routing_of(*tokens);
  }
}

}  // namespace

size_t lineage_steps(const JsonReader& lineage) {
  const auto steps = lineage.find("steps");
  return !steps || !steps->json().is_array() ? 0 : steps->json().items().size();
}

std::map<int64_t, std::vector<uint32_t>> lineage_parents(const JsonReader& lineage, size_t index) {
  if (index >= lineage_steps(lineage)) return {};
  const auto parents = lineage.at("steps").items()[index].find("parents");
  return !parents ? std::map<int64_t, std::vector<uint32_t>>{} : parents_of(*parents);
}

Attachments read_attachments(const std::vector<RunRecord>& runs) {
  Attachments out;
  std::set<fs::path> seen;
  for (const auto& run : runs) {
    const fs::path own = fs::absolute(run.directory).lexically_normal();
    add_growths_of(run, out);
    add_routing(run, out);
    for (const fs::path& folder : {own, own.parent_path()}) {
      const bool is_new = seen.insert(folder).second;
      if (auto scores = is_new ? read_scores(folder / "scores.json") : std::nullopt) {
        GrowthRecord record{.name = folder.filename().string(), .scores = std::move(scores)};
        for (const auto& other : runs) {  // the expanded run of this directory
          const fs::path at = fs::absolute(other.directory).lexically_normal();
          if ((at == folder || at.parent_path() == folder) && record.parents.empty()) {
            record.parents = lineage_parents(other.lineage, 0);
          }
        }
        add_growth(std::move(record), out);
      }
      const auto result = read_ours(folder / "result.json", "seed");
      const std::string arm = own.filename().string();
      if (out.routing.contains(run.name) || !result || !result->find(arm)) continue;
      Routing routing = routing_of_demo(run, result->at(arm));
      if (!routing.empty()) out.routing[run.name] = std::move(routing);
    }
  }
  return out;
}

}  // namespace coppice::report
