#include "coppice/train/trainer_state.h"

#include <limits>
#include <numeric>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/upcycle/optimizer_state.h"

namespace coppice::train {
namespace {

constexpr int64_t kVersion = 1;

int64_t count(const Json& json, std::string_view key) {
  const int64_t value = json.at(key).as_int();
  if (value < 0) throw Error(ErrorCode::kFormat, cat("'", key, "' is ", value, "; wanted 0 or more"));
  return value;
}

TrainerState from_json(const Json& json) {
  if (const int64_t version = count(json, "coppice_trainer"); version != kVersion) {
    throw Error(ErrorCode::kFormat, cat("'coppice_trainer' is ", version, "; wanted ", kVersion));
  }
  TrainerState state;
  state.position.step = count(json, "step");
  state.position.next_sample = static_cast<uint64_t>(count(json, "next_sample"));
  state.position.tokens_seen = static_cast<uint64_t>(count(json, "tokens_seen"));
  if (json.find("growths") != nullptr) {  // older files have no growth in mid-run
    state.position.growths = count(json, "growths");
    state.position.grown_at = json.at("grown_at").as_int();
  }
  for (const Json& loss : json.at("recent_losses").items()) state.position.recent_losses.push_back(loss.as_double());
  state.settings = Json::object(json.at("settings").members());
  state.data = Json::array(json.at("data").items());
  if (const Json* const watch = json.find("watch")) state.watch = *watch;  // files of 0.1.0 have none
  return state;
}

}  // namespace

double Position::recent_loss() const {
  if (recent_losses.empty()) return std::numeric_limits<double>::quiet_NaN();
  return std::accumulate(recent_losses.begin(), recent_losses.end(), 0.0) / static_cast<double>(recent_losses.size());
}

Json TrainerState::to_json() const {
  Json json = Json::object();
  json["coppice_trainer"] = kVersion;
  json["step"] = position.step;
  json["next_sample"] = position.next_sample;
  json["tokens_seen"] = position.tokens_seen;
  json["growths"] = position.growths;
  json["grown_at"] = position.grown_at;
  json["recent_losses"] = Json::array_of(position.recent_losses);
  json["settings"] = settings;
  json["data"] = data;
  if (!watch.is_null()) json["watch"] = watch;
  return json;
}

TrainerState TrainerState::read(const std::filesystem::path& checkpoint) {
  const auto path = checkpoint / upcycle::kTrainerFolder / upcycle::kTrainerFile;
  const Json json = Json::read(path);
  try {
    return from_json(json);
  } catch (const Error& error) {
    throw Error(ErrorCode::kFormat, cat(path, ": ", error.what(), " (go back to an earlier checkpoint)"));
  }
}

}  // namespace coppice::train
