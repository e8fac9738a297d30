// scores.json: written by `score` and read by `expand`, possibly on another machine. The file may be damaged, so
// everything is checked.

#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/json_fields.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/io/output_place.h"
#include "coppice/methods/children.h"
#include "coppice/plan/utility.h"

namespace coppice::plan {
namespace {

constexpr int64_t kVersion = 1;
constexpr std::string_view kConcentration = "gate_concentration";
constexpr std::string_view kConcentrationOf010 = "effective_top_k";  // the key in files of version 0.1.0

using PerLayer = std::map<int64_t, std::vector<double>>;

Json per_layer_json(const PerLayer& values) {
  Json out = Json::object();
  for (const auto& [layer, experts] : values) out[std::to_string(layer)] = Json::array_of(experts);
  return out;
}

Json per_layer_json(const std::map<int64_t, double>& values) {
  Json out = Json::object();
  for (const auto& [layer, value] : values) out[std::to_string(layer)] = value;
  return out;
}

Json sums_json(const MetricSums& sums) {
  Json out = Json::object();
  out["sum"] = per_layer_json(sums.sum);
  if (!sums.sum_sq.empty()) out["sum_sq"] = per_layer_json(sums.sum_sq);
  return out;
}

void check_written(std::string_view metric, const MetricScores& scores) {
  const auto check = [&](std::string_view linear, std::string_view kind, const PerLayer& layers) {
    for (const auto& [layer, values] : layers) {
      for (size_t expert = 0; expert < values.size(); ++expert) {
        if (std::isfinite(values[expert])) continue;
        throw Error(ErrorCode::kNonFinite,
                    cat("scores: ", metric, ", ", linear, ", ", kind, ", layer ", layer, ", expert ", expert, " is ",
                        values[expert], "; wanted a finite number (the model is damaged, or its training diverged)"));
      }
    }
  };
  check("fc1", "sum", scores.fc1.sum);
  check("fc1", "sum_sq", scores.fc1.sum_sq);
  check("fc2", "sum", scores.fc2.sum);
  check("fc2", "sum_sq", scores.fc2.sum_sq);
}

double read_score(const Json& value, std::string_view path) {
  if (!value.is_number()) throw Error(ErrorCode::kFormat, cat(path, ": not a number (score the model again)"));
  const double score = value.as_double();
  if (!std::isfinite(score) || score < 0) {
    throw Error(ErrorCode::kNonFinite,
                cat(path, " is ", score, "; scores must be finite and not negative (score the model again)"));
  }
  return score;
}

int64_t read_layer(const JsonFields& fields, const std::string& key, int64_t layers) {
  const int64_t layer = methods::layer_from_key(key, fields.path_of(key));
  if (layer >= layers) fields.fail(key, cat("the model has ", layers, " layers"));
  return layer;
}

PerLayer read_per_layer(const JsonFields& fields, int64_t layers, int64_t experts) {
  PerLayer out;
  for (const auto& [key, unused] : fields.members()) {
    const int64_t layer = read_layer(fields, key, layers);
    const auto& items = fields.array(key).items();
    if (items.size() != static_cast<size_t>(experts)) {
      fields.fail(key, cat("has ", items.size(), " values; wanted one for each of ", experts, " experts"));
    }
    auto& values = out[layer];
    for (const Json& item : items) {
      values.push_back(read_score(item, cat(fields.path_of(key), ": layer ", layer, ", expert ", values.size())));
    }
  }
  return out;
}

MetricSums read_sums(const JsonFields& fields, int64_t layers, int64_t experts) {
  MetricSums sums;
  sums.sum = read_per_layer(fields.object("sum"), layers, experts);
  if (sums.sum.empty()) fields.fail("sum", "has no layers");
  if (fields.has("sum_sq")) sums.sum_sq = read_per_layer(fields.object("sum_sq"), layers, experts);
  for (const auto& [layer, unused] : sums.sum_sq) {
    if (!sums.sum.contains(layer)) fields.fail("sum_sq", cat("has layer ", layer, ", which 'sum' does not have"));
  }
  return sums;
}

std::map<int64_t, double> read_layer_values(const JsonFields& fields, int64_t layers) {
  std::map<int64_t, double> out;
  for (const auto& [key, value] : fields.members()) {
    out[read_layer(fields, key, layers)] = read_score(value, fields.path_of(key));
  }
  return out;
}

LayerStatistic read_statistic(const JsonFields& fields, int64_t layers) {
  LayerStatistic out{read_layer_values(fields.object("sum"), layers),
                     read_layer_values(fields.object("sum_sq"), layers)};
  for (const auto& [layer, unused] : out.sum) {
    if (!out.sum_sq.contains(layer)) fields.fail("sum", cat("has layer ", layer, ", which 'sum_sq' does not have"));
  }
  if (out.sum.size() != out.sum_sq.size()) fields.fail("sum_sq", "has layers that 'sum' does not have");
  return out;
}

void read_tokens(const JsonFields& fields, Scores& scores) {
  const auto count = [&](std::string_view key) {
    return static_cast<uint64_t>(fields.integer(key, 1, families::kMaxCount));
  };
  scores.tokens_digest = fields.text("digest");
  scores.tokens_seen = count("seen");
  scores.batch_tokens = count("batch_tokens");
  scores.batches = count("batches");
  if (scores.tokens_seen % scores.batches != 0 || scores.tokens_seen / scores.batches != scores.batch_tokens) {
    fields.fail("seen", cat("is ", scores.tokens_seen, "; wanted batches times batch_tokens, ", scores.batches,
                            " times ", scores.batch_tokens));
  }
  if (fields.has("reset_attention")) scores.reset_attention = fields.boolean("reset_attention");
}

std::vector<std::string> read_runs(const JsonFields& fields) {
  std::vector<std::string> out;
  for (const Json& run : fields.array("runs").items()) {
    if (!run.is_string()) fields.fail("runs", "has an item that is not text; wanted digests of files");
    out.push_back(run.as_string());
  }
  return out;
}

}  // namespace

Json Scores::to_json() const {
  Json out = Json::object();
  out["coppice_scores"] = Json(kVersion);
  Json& model = out["model"];
  model["digest"] = model_digest;
  model["model_type"] = model_type;
  model["layers"] = layers;
  model["experts"] = experts;
  Json& tokens = out["tokens"];
  tokens["digest"] = tokens_digest;
  tokens["seen"] = tokens_seen;
  tokens["batch_tokens"] = batch_tokens;
  tokens["batches"] = batches;
  if (reset_attention) tokens["reset_attention"] = true;
  if (!runs.empty()) out["runs"] = Json::array_of(runs);
  if (!second_moment.empty()) out["second_moment"] = second_moment;
  Json metric_objects = Json::object();
  for (const auto& [name, metric] : metrics) {
    check_written(name, metric);
    Json& linears = metric_objects[name];
    linears["fc1"] = sums_json(metric.fc1);
    linears["fc2"] = sums_json(metric.fc2);
  }
  out["metrics"] = std::move(metric_objects);
  if (!gate_concentration.sum.empty()) {
    Json& statistic = out["routing"][kConcentration];
    statistic["sum"] = per_layer_json(gate_concentration.sum);
    statistic["sum_sq"] = per_layer_json(gate_concentration.sum_sq);
  }
  return out;
}

Scores Scores::from_json(const Json& json, std::string_view source) {
  const JsonFields fields(json, std::string(source));
  fields.integer("coppice_scores", kVersion, kVersion);
  Scores scores;
  const JsonFields model = fields.object("model");
  scores.model_digest = model.text("digest");
  scores.model_type = model.text("model_type");
  scores.layers = model.integer("layers", 1, families::kMaxLayers);
  scores.experts = model.integer("experts", 1, families::kMaxExperts);
  read_tokens(fields.object("tokens"), scores);
  if (fields.has("runs")) scores.runs = read_runs(fields);
  if (fields.has("second_moment")) scores.second_moment = fields.text("second_moment");
  if (fields.has("routing")) {
    const JsonFields routing = fields.object("routing");
    const auto name = routing.has(kConcentrationOf010) ? kConcentrationOf010 : kConcentration;
    scores.gate_concentration = read_statistic(routing.object(name), scores.layers);
  }
  const JsonFields metrics = fields.object("metrics");
  if (metrics.members().empty()) fields.fail("metrics", "is empty; wanted one or more metrics");
  for (const auto& [name, unused] : metrics.members()) {
    const JsonFields metric = metrics.object(name);
    MetricScores& target = scores.metrics[name];
    target.fc1 = read_sums(metric.object("fc1"), scores.layers, scores.experts);
    target.fc2 = read_sums(metric.object("fc2"), scores.layers, scores.experts);
  }
  return scores;
}

bool Scores::is_file(const std::filesystem::path& path) {
  std::string start = read_start(path, 256);
  std::erase_if(start, [](char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; });
  return start.starts_with("{\"coppice_scores\":");
}

Scores Scores::read(const std::filesystem::path& path) { return from_json(Json::read(path), path.string()); }

}  // namespace coppice::plan
