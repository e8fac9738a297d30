#include "coppice/score/partial_scores.h"

#include <array>
#include <charconv>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/json_reader.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/base/version.h"
#include "coppice/dist/all_or_none.h"
#include "coppice/io/atomic_file.h"
#include "coppice/nn/host.h"

namespace coppice::score {
namespace {

namespace fs = std::filesystem;

constexpr const char* kStateFile = "state.json";
constexpr const char* kLeft = "layers_left";

dist::World* several(const ScoreSettings& settings) {
  return settings.world && settings.world->size() > 1 ? settings.world.get() : nullptr;
}

// Everything that the results depend on, which excludes memory, threads and which of several like devices.
io::WorkIdentity identity_of(const families::Model& model, const plan::Scores& begun, const ScoreSettings& settings) {
  Sha256 plan, source;
  plan.add(cat(begun.to_json().dump(), " ", settings.sequence_length, " ", settings.seed, " ",
               settings.dtype == nn::ComputeDtype::kF32 ? "f32" : "bf16", " ",
               c10::DeviceTypeName(settings.device.type()), " ", version()));
  if (dist::World* const world = several(settings)) plan.add(cat(" ", world->size(), " ", world->experts().size()));
  for (const auto& shard : model.checkpoint.shards()) {
    const auto name = shard.path().lexically_relative(model.checkpoint.directory());
    const auto file = model.checkpoint.files().state(name).value_or(FileState{});
    source.add(cat(name.string(), " ", file.bytes, " ", file.modified_ns, "\n"));
  }
  return {.plan = plan.hex(), .source = source.hex()};
}

constexpr std::string_view kRank = ".rank-", kLayers = ".layers";

// Of the only rank: -1.
fs::path work_name(const fs::path& out, int64_t rank) {
  return out.string() + (rank < 0 ? std::string() : cat(kRank, rank)) + std::string(kLayers);
}

fs::path work_of(const ScoreSettings& settings) {
  const dist::World* const world = several(settings);
  return work_name(settings.out, world ? world->rank() : -1);
}

// Removes what a killed run on another number of ranks has left.
void remove_others(const ScoreSettings& settings) {
  const dist::World* const world = several(settings);
  if (world && world->rank() > 0) return;
  const int64_t ranks = world ? world->size() : 0;
  if (world) io::remove_leftovers(work_name(settings.out, -1));
  const fs::path parent = settings.out.parent_path();
  const std::string first = settings.out.filename().string() + std::string(kRank);
  std::error_code ignored;
  for (const std::string& name : io::leftovers(parent.empty() ? "." : parent)) {
    if (!name.starts_with(first) || !name.ends_with(kLayers)) continue;
    const std::string_view digits =
        std::string_view(name).substr(first.size(), name.size() - first.size() - kLayers.size());
    int64_t rank = -1;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    if (error == std::errc() && end == digits.data() + digits.size() && rank >= ranks) {
      io::remove_leftovers(work_name(settings.out, rank));
    }
  }
}

}  // namespace

PartialScores::PartialScores(const families::Model& model, const plan::Scores& begun, const ScoreSettings& settings)
    : world_(several(settings) ? settings.world : nullptr),
      directory_(work_of(settings), {}, settings.resume, identity_of(model, begun, settings)),
      layers_left_(begun.layers) {
  if (!settings.resume) remove_others(settings);
  read_state(begun.layers);
  if (world_) agree();
}

void PartialScores::read_state(int64_t layers) {
  const auto path = directory() / kStateFile;
  if (!fs::exists(path)) return;
  const JsonReader state = JsonReader::read(path);
  layers_left_ = state.at(kLeft).as_int();
  if (state.find("scores")) scores_ = plan::Scores::from_json(state.at("scores").json(), path.string());
  if (layers_left_ >= 0 && layers_left_ <= layers) return;
  state.fail(cat(layers_left_, " layers left, but the model has ", layers, " (start again without --resume)"));
}

// A rank whose last save the others have not made has still what it needs to continue after the one before.
void PartialScores::agree() {
  const auto agreed = [&](int64_t value, dist::Reduce how) {
    const at::Tensor all = nn::from_host<int64_t>(std::array{value}, {1}, at::kCPU);
    world_->control().all_reduce(all, how).wait();
    return nn::to_host<int64_t>(all)[0];
  };
  const int64_t left = agreed(layers_left_, dist::Reduce::kMax);
  const int64_t behind = agreed(layers_left_ == left ? world_->rank() : world_->size(), dist::Reduce::kMin);
  // The sums over ranks, and so the scores, are the same on all of them.
  const std::string text =
      dist::broadcast_text(world_->control(), scores_ ? scores_->to_json().dump() : std::string(), behind);
  layers_left_ = left;
  scores_.reset();
  if (!text.empty()) scores_ = plan::Scores::from_json(Json::parse(text, "scores"), "scores");
}

void PartialScores::save(const plan::Scores& scores, int64_t layers_left) {
  Json state = Json::object();
  state[kLeft] = layers_left;
  if (!scores.metrics.empty()) state["scores"] = scores.to_json();  // none yet if the last layers have no experts
  const auto write = [&] { io::write_file_atomically(directory() / kStateFile, state.dump() + "\n"); };
  world_ ? dist::all_or_none(world_->control(), write) : write();
}

}  // namespace coppice::score
