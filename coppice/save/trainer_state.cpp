#include "coppice/save/trainer_state.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/io/model_directory.h"

namespace coppice::save {
namespace {

constexpr int64_t kVersion = 1;

int64_t count(const Json& json, std::string_view key) {
  const int64_t value = json.at(key).as_int();
  if (value < 0 || value > families::kMaxCount)
    throw Error(ErrorCode::kFormat, cat("'", key, "' is ", value, "; wanted 0 to ", families::kMaxCount));
  return value;
}

std::map<int64_t, std::vector<int64_t>> expert_counts(const Json& json) {
  std::map<int64_t, std::vector<int64_t>> out;
  for (const auto& [key, counts] : json.members()) {
    int64_t layer = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), layer);
    std::vector<int64_t> of_layer;
    for (const Json& value : counts.items()) of_layer.push_back(value.as_int());
    const bool is_layer = error == std::errc{} && end == key.data() + key.size() && layer >= 0;
    // As doubles, so that the sum of any counts is finite.
    const double sum = std::accumulate(of_layer.begin(), of_layer.end(), 0.0);
    if (!is_layer || std::ranges::any_of(of_layer, [](int64_t n) { return n < 0; }) || !(sum > 0 && sum < 1e18)) {
      throw Error(ErrorCode::kFormat, cat("'expert_counts' has '", key, "': ", counts.dump().substr(0, 80),
                                          "; wanted a layer's number and counts of 0 or more, not all 0"));
    }
    out[layer] = std::move(of_layer);
  }
  return out;
}

TrainerState state_from(const Json& json) {
  if (const int64_t version = count(json, "coppice_trainer"); version != kVersion) {
    throw Error(ErrorCode::kFormat, cat("'coppice_trainer' is ", version, "; wanted ", kVersion));
  }
  TrainerState state;
  state.position.step = count(json, "step");
  state.position.next_sample = static_cast<uint64_t>(count(json, "next_sample"));
  state.position.tokens_seen = static_cast<uint64_t>(count(json, "tokens_seen"));
  if (json.find("growths") != nullptr) {  // older files have no expansion during training
    state.position.growths = count(json, "growths");
    state.position.grown_at = json.at("grown_at").as_int() == -1 ? -1 : count(json, "grown_at");
  }
  for (const Json& loss : json.at("recent_losses").items()) {
    state.position.recent_losses.push_back(loss.as_double());
    if (!std::isfinite(loss.as_double())) {
      throw Error(ErrorCode::kFormat, cat("'recent_losses' holds ", loss.as_double(), "; wanted finite numbers"));
    }
  }
  if (json.find("released") != nullptr) state.position.released = count(json, "released");
  if (json.find("wake_steps") != nullptr) state.position.wake_steps = count(json, "wake_steps");
  if (const Json* counts = json.find("expert_counts")) state.position.expert_counts = expert_counts(*counts);
  state.settings = Json::object(json.at("settings").members());
  state.data = Json::array(json.at("data").items());
  if (const Json* const watch = json.find("watch")) state.watch = *watch;  // files of version 0.1.0 do not have it
  return state;
}

}  // namespace

Json TrainerState::to_json() const {
  Json json = Json::object();
  json["coppice_trainer"] = kVersion;
  json["step"] = position.step;
  json["next_sample"] = position.next_sample;
  json["tokens_seen"] = position.tokens_seen;
  json["growths"] = position.growths;
  json["grown_at"] = position.grown_at;
  if (position.released > 0) json["released"] = position.released;
  if (position.wake_steps > 0) json["wake_steps"] = position.wake_steps;
  for (const auto& [layer, counts] : position.expert_counts) {
    json["expert_counts"][std::to_string(layer)] = Json::array_of(counts);
  }
  json["recent_losses"] = Json::array_of(position.recent_losses);
  json["settings"] = settings;
  json["data"] = data;
  if (!watch.is_null()) json["watch"] = watch;
  return json;
}

TrainerState TrainerState::read(const std::filesystem::path& checkpoint) {
  const auto name = std::filesystem::path(io::kTrainerFolder) / io::kTrainerFile;
  return from_json(io::ModelDirectory(checkpoint).read_json(name), (checkpoint / name).string());
}

TrainerState TrainerState::from_json(const Json& json, std::string_view source) {
  try {
    return state_from(json);
  } catch (const Error& error) {
    throw Error(ErrorCode::kFormat, cat(source, ": ", error.what(), " (go back to an earlier checkpoint)"));
  }
}

}  // namespace coppice::save
