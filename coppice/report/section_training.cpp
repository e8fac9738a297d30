// The health of the runs, and their settings.

#include <algorithm>
#include <set>

#include "coppice/base/text.h"
#include "coppice/report/sections_detail.h"

namespace coppice::report::detail {
namespace {

struct ScalarText {
  std::string_view tag, title, unit, caption;
};
constexpr ScalarText kScalars[] = {
    {"maxvio/mean", "Load imbalance (MaxVio), mean over layers", "max load / mean - 1",
     "0 is even. It should fall in the first few hundred steps, and again after an expansion."},
    {"grad_norm", "Gradient norm", "",
     "A slow rise is normal in the stable phase; if spikes come with a jump of the loss, use a lower learning rate or "
     "clipping."},
    {"lr", "Learning rate", "", "The learning rate of the schedule; compare runs only if it is equal."},
    {"tokens_per_s", "Speed", "tokens per second", "Dips are validations, checkpoints or other work on the machine."},
    {"gemm_share", "Time of the matrix products alone, as a share of the step", "share",
     "1 would be the speed of one large matrix product; the rest is other work."},
    {"aux", "Auxiliary loss", "", "Loss term of balancing; it is lowest for an even load."},
    {"z", "Router z-loss", "", ""},
};

// Tags that have sections of their own.
bool is_elsewhere(std::string_view tag) {
  return tag == "loss" || tag == "tokens_seen" || tag.starts_with("validation/") || layer_tag(tag).has_value();
}

Page::View view_of(const Reported& all, std::string_view tag, std::string_view title, std::string_view unit) {
  return {std::string(tag),
          figure(against_tokens(all, std::string(title), std::string(unit), of_tag(std::string(tag))))};
}

Json flattened(const Json& settings) {
  Json out = Json::object();
  if (!settings.is_object()) return out;
  for (const auto& [key, value] : settings.members()) {
    if (!value.is_object()) {
      out[key] = value;
      continue;
    }
    const Json inside = flattened(value);
    for (const auto& [name, leaf] : inside.members()) out[cat(key, ".", name)] = leaf;
  }
  return out;
}

// Events between steps, except frequent ones.
void add_events(Page& page, const Reported& all) {
  constexpr size_t kMostEvents = 60, kLongest = 160;
  Table table{.header = {"run", "step", "event", "details"}, .rows = {}};
  size_t left_out = 0;
  for (const auto& run : all.runs) {
    for (const JsonReader& reader : run.events) {
      const Json& event = reader.json();
      const Json &name = event.at("event"), *step = event.find("step");
      if (!name.is_string() || name == Json("routing") || name == Json("checkpoint")) continue;
      if (table.rows.size() == kMostEvents) {
        ++left_out;
        continue;
      }
      std::vector<std::string> details;
      for (const auto& [key, value] : event.members()) {
        if (key == "event" || key == "step" || value.is_object()) continue;
        details.push_back(cat(key, ": ", value.is_string() ? value.as_string() : value.dump()));
      }
      std::string text = join(details, "; ");
      if (text.size() > kLongest) text = cat(text.substr(0, text.find(' ', kLongest - 20)), " ...");
      table.rows.push_back({run.name, step == nullptr ? "" : step->dump(), name.as_string(), text});
    }
  }
  if (table.rows.empty()) return;
  page.subheading("Events");
  page.table(table, left_out > 0 ? cat(left_out, " more are in metrics.jsonl.") : "");
}

// Settings in which the runs differ.
Table differences(const Reported& all) {
  std::vector<Json> settings;
  std::set<std::string> names;
  for (const auto& run : all.runs) {
    settings.push_back(flattened(run.settings.json()));
    for (const auto& [name, value] : settings.back().members()) names.insert(name);
  }
  Table table{.header = {"setting"}, .rows = {}};
  for (const auto& run : all.runs) table.header.push_back(run.name);
  names.erase("train.out");
  for (const auto& name : names) {
    std::vector<std::string> row = {name};
    std::set<std::string> values;
    for (const auto& one : settings) {
      const Json* value = one.find(name);
      row.push_back(value == nullptr ? "-" : value->is_string() ? value->as_string() : value->dump());
      values.insert(row.back());
    }
    if (values.size() > 1) table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace

void add_training(Page& page, const Reported& all) {
  std::set<std::string> tags;
  for (const auto& run : all.runs) {
    for (const auto& [tag, points] : run.series) {
      if (!is_elsewhere(tag)) tags.insert(tag);
    }
  }
  if (tags.empty()) return;
  page.heading("Training");
  for (const ScalarText& text : kScalars) {
    if (tags.erase(std::string(text.tag)) == 0) continue;
    page.views({view_of(all, text.tag, text.title, text.unit)}, text.caption);
  }
  std::vector<Page::View> others;
  for (const auto& tag : tags) others.push_back(view_of(all, tag, tag, ""));
  page.views(others, "Everything else that the runs logged.", "metric");
  add_events(page, all);
}

void add_configuration(Page& page, const Reported& all) {
  page.heading("Configuration");
  constexpr size_t kMostColumns = 16;
  if (all.runs.size() > 1 && all.runs.size() <= kMostColumns) {
    const Table table = differences(all);
    if (!table.rows.empty()) page.table(table, "Settings in which the runs differ; all of them below.");
  }
  for (const auto& run : all.runs) page.folded(run.name, run.config_toml);
}

}  // namespace coppice::report::detail
