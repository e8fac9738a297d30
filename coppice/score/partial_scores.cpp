#include "coppice/score/partial_scores.h"

#include "coppice/base/error.h"
#include "coppice/base/json_reader.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/base/version.h"
#include "coppice/io/atomic_file.h"

namespace coppice::score {
namespace {

constexpr const char* kStateFile = "state.json";
constexpr const char* kLeft = "layers_left";

// Everything that the results depend on, which excludes memory, threads and which of several like devices.
io::WorkIdentity identity_of(const families::Model& model, const plan::Scores& begun, const ScoreSettings& settings) {
  Sha256 plan, source;
  plan.add(cat(begun.to_json().dump(), " ", settings.sequence_length, " ", settings.seed, " ",
               settings.dtype == nn::ComputeDtype::kF32 ? "f32" : "bf16", " ",
               c10::DeviceTypeName(settings.device.type()), " ", version()));
  for (const auto& shard : model.checkpoint.shards()) {
    const auto name = shard.path().lexically_relative(model.checkpoint.directory());
    const auto file = model.checkpoint.files().state(name).value_or(FileState{});
    source.add(cat(name.string(), " ", file.bytes, " ", file.modified_ns, "\n"));
  }
  return {.plan = plan.hex(), .source = source.hex()};
}

std::filesystem::path work_name(const std::filesystem::path& out) { return out.string() + ".layers"; }

}  // namespace

PartialScores::PartialScores(const families::Model& model, const plan::Scores& begun, const ScoreSettings& settings)
    : directory_(work_name(settings.out), {}, settings.resume, identity_of(model, begun, settings)),
      layers_left_(begun.layers) {
  const auto path = directory() / kStateFile;
  if (!std::filesystem::exists(path)) return;
  const JsonReader state = JsonReader::read(path);
  layers_left_ = state.at(kLeft).as_int();
  if (state.find("scores")) scores_ = plan::Scores::from_json(state.at("scores").json(), path.string());
  if (layers_left_ >= 0 && layers_left_ <= begun.layers) return;
  state.fail(cat(layers_left_, " layers left, but the model has ", begun.layers, " (start again without --resume)"));
}

void PartialScores::save(const plan::Scores& scores, int64_t layers_left) {
  Json state = Json::object();
  state[kLeft] = layers_left;
  if (!scores.metrics.empty()) state["scores"] = scores.to_json();  // none yet if the last layers have no experts
  io::write_file_atomically(directory() / kStateFile, state.dump() + "\n");
}

}  // namespace coppice::score
