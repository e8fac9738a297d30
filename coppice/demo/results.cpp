#include "coppice/demo/results.h"

#include <algorithm>
#include <cmath>

namespace coppice::demo {
namespace {

std::vector<double> doubles(const Json& json) {
  std::vector<double> out;
  for (const auto& item : json.items()) out.push_back(item.as_double());
  return out;
}

template <class Key>
Json map_json(const std::map<Key, double>& values) {
  Json out = Json::object();
  for (const auto& [key, value] : values) {
    if constexpr (std::is_integral_v<Key>) {
      out[std::to_string(key)] = value;
    } else {
      out[key] = value;
    }
  }
  return out;
}

std::map<int64_t, double> layer_map(const Json& json) {
  std::map<int64_t, double> out;
  for (const auto& [key, value] : json.members()) out[std::stoll(key)] = value.as_double();
  return out;
}

}  // namespace

double ArmResult::mean_loss() const {
  double sum = 0;
  for (const auto& [domain, value] : loss) sum += value;
  return sum / static_cast<double>(loss.size());
}

Json ArmResult::to_json() const {
  Json out = Json::object();
  out["mean_loss"] = mean_loss();
  out["loss"] = map_json(loss);
  out["seconds_per_step"] = seconds_per_step;
  out["train_seconds"] = train_seconds;
  out["steps"] = steps;
  Json points = Json::array();
  for (const auto& [x, y] : curve) points.push_back(Json::array({x, y}));
  out["curve"] = std::move(points);
  Json shares = Json::object();
  for (const auto& [domain, layers] : expert_share) {
    Json rows = Json::array();
    for (const auto& row : layers) rows.push_back(Json::array_of(row));
    shares[domain] = std::move(rows);
  }
  out["expert_share"] = std::move(shares);
  return out;
}

ArmResult ArmResult::from_json(const Json& json) {
  ArmResult out;
  for (const auto& [domain, value] : json.at("loss").members()) out.loss[domain] = value.as_double();
  out.seconds_per_step = json.at("seconds_per_step").as_double();
  out.train_seconds = json.at("train_seconds").as_double();
  out.steps = json.at("steps").as_int();
  for (const auto& point : json.at("curve").items()) {
    const auto xy = doubles(point);
    out.curve.emplace_back(xy.at(0), xy.at(1));
  }
  for (const auto& [domain, rows] : json.at("expert_share").members()) {
    for (const auto& row : rows.items()) out.expert_share[domain].push_back(doubles(row));
  }
  return out;
}

Json SeedResult::to_json() const {
  return Json::object({{"seed", seed},
                       {"jump", jump()},
                       {"gap", gap()},
                       {"eta", eta()},
                       {"surgery_seconds", surgery_seconds},
                       {"sibling_cosine", map_json(sibling_cosine)},
                       {"sibling_distance", map_json(sibling_distance)},
                       {"trunk", trunk.to_json()},
                       {"expanded", expanded.to_json()},
                       {"control", control.to_json()},
                       {"upcycled", upcycled.to_json()},
                       {"scratch", scratch.to_json()}});
}

SeedResult SeedResult::from_json(const Json& json) {
  SeedResult out;
  out.seed = static_cast<uint64_t>(json.at("seed").as_int());
  out.surgery_seconds = json.at("surgery_seconds").as_double();
  out.sibling_cosine = layer_map(json.at("sibling_cosine"));
  out.sibling_distance = layer_map(json.at("sibling_distance"));
  out.trunk = ArmResult::from_json(json.at("trunk"));
  out.expanded = ArmResult::from_json(json.at("expanded"));
  out.control = ArmResult::from_json(json.at("control"));
  out.upcycled = ArmResult::from_json(json.at("upcycled"));
  out.scratch = ArmResult::from_json(json.at("scratch"));
  return out;
}

GapClosure gap_closure(const std::vector<SeedResult>& seeds) {
  std::vector<double> gains, gaps;
  for (const auto& s : seeds) {
    gains.push_back(s.gain());
    gaps.push_back(s.gap());
  }
  GapClosure out{.gap = spread(gaps), .eta = report::closure(gains, gaps)};
  out.reliable = out.gap.mean > 3 * out.gap.standard_error;  // false for NaN
  return out;
}

double SeedResult::predicted_saving() const {
  const double share = static_cast<double>(trunk.steps) / static_cast<double>(scratch.steps);
  return share * (1 - control.seconds_per_step / scratch.seconds_per_step);
}

double SeedResult::measured_saving() const {
  return 1 - (trunk.train_seconds + surgery_seconds + upcycled.train_seconds) / scratch.train_seconds;
}

}  // namespace coppice::demo
