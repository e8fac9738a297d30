#include "coppice/models/optimizer_state.h"

#include <algorithm>
#include <set>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::models {
namespace {

using families::Model;
using families::Role;
using families::TensorSlot;

namespace fs = std::filesystem;
using io::Checkpoint;
using io::Dtype;

constexpr size_t kListed = 20;
constexpr std::string_view kStem = "optimizer";

void refuse_torch_state(const io::ModelDirectory& files, const fs::path& name) {
  if (!files.has(name)) return;
  throw Error(ErrorCode::kUnsupported,
              cat(files.path() / name, ": is an optimizer state in torch's pickle format; wanted ", io::kTrainerFolder,
                  "/", io::shard_name(kStem, 1, 1),
                  " (move it away to expand only the weights; training then starts with a new optimizer state)"));
}

/// Opens the shards of trainer/, which must be complete and have no other files beside them.
std::vector<io::SafetensorsFile> open_shards(const io::ModelDirectory& files) {
  const fs::path folder = files.path() / io::kTrainerFolder;
  const auto names = files.names(io::kTrainerFolder);
  std::set<std::string> found(names.begin(), names.end());
  if (found.erase(io::kTrainerFile) == 0) {
    throw Error(ErrorCode::kFormat,
                cat(folder, ": no ", io::kTrainerFile,
                    "; the checkpoint is incomplete (remove the directory to expand only the weights)"));
  }
  std::vector<io::SafetensorsFile> shards;
  for (size_t i = 1; i <= found.size(); ++i) {
    const std::string name = io::shard_name(kStem, i, found.size());
    if (found.contains(name)) shards.push_back(files.open_tensors(fs::path(io::kTrainerFolder) / name));
  }
  if (shards.empty() || shards.size() != found.size()) {
    throw Error(
        ErrorCode::kFormat,
        cat(folder, ": has ", join_some(std::vector(found.begin(), found.end()), kListed), " beside ", io::kTrainerFile,
            "; wanted a complete set of optimizer-0000i-of-0000N.safetensors and nothing else"));
  }
  return shards;
}

}  // namespace

bool counts_rows(const TensorSlot& slot) { return is_router(slot.role()) || slot.rule->layout.stacked; }

std::vector<OptimizerTensor> optimizer_tensors(const TensorSlot& slot, Dtype weights, int64_t experts) {
  const bool empty = std::find(slot.shape.begin(), slot.shape.end(), 0) != slot.shape.end();
  if (slot.role() == Role::kSelectionBias || empty) return {};
  std::vector<OptimizerTensor> tensors = {{"exp_avg", Dtype::kF32, slot.shape},
                                          {"exp_avg_sq", Dtype::kF32, slot.shape},
                                          {"step", Dtype::kI64, {counts_rows(slot) ? experts : 1}}};
  if (weights != Dtype::kF32) tensors.insert(tensors.begin(), {"master", Dtype::kF32, slot.shape});
  return tensors;
}

std::optional<OptimizerState> OptimizerState::open(const Model& model) {
  const io::ModelDirectory& files = model.checkpoint.files();
  const fs::path folder = files.path() / io::kTrainerFolder;
  refuse_torch_state(files, "optimizer.pt");
  refuse_torch_state(files, fs::path(io::kTrainerFolder) / "optimizer.pt");
  if (!files.has_folder(io::kTrainerFolder)) return std::nullopt;

  OptimizerState state;
  state.shards_ = open_shards(files);
  for (const io::SafetensorsFile& shard : state.shards_) {
    for (const io::TensorInfo& info : shard.tensors()) {
      if (state.entries_.emplace(info.name, Checkpoint::Entry{&shard, &info}).second) continue;
      throw Error(ErrorCode::kFormat,
                  cat(shard.path(), ": '", info.name, "' is also in another shard; wanted each tensor once"));
    }
  }

  std::vector<std::string> missing, misshapen;
  std::set<std::string> extra;
  for (const auto& [name, entry] : state.entries_) extra.insert(name);
  for (const TensorSlot& slot : model.slots) {
    const Dtype weights = model.checkpoint.at(slot.name).info->dtype;
    for (const OptimizerTensor& tensor : optimizer_tensors(slot, weights, model.config.num_experts)) {
      const std::string key = cat(slot.name, ".", tensor.name);
      const auto found = state.entries_.find(key);
      if (found == state.entries_.end()) {
        missing.push_back(key);
        continue;
      }
      extra.erase(key);
      const io::TensorInfo& info = *found->second.info;
      if (info.dtype == tensor.dtype && info.shape == tensor.shape) continue;
      misshapen.push_back(cat("'", key, "' is ", io::dtype_name(info.dtype), " ", shape_text(info.shape), ", wanted ",
                              io::dtype_name(tensor.dtype), " ", shape_text(tensor.shape)));
    }
  }
  if (!missing.empty() || !extra.empty()) {
    std::string message = cat(folder, ": the optimizer state does not fit the model");
    if (!missing.empty()) message += cat("; missing: ", join_some(missing, kListed));
    if (!extra.empty())
      message += cat("; not in the model: ", join_some(std::vector(extra.begin(), extra.end()), kListed));
    throw Error(ErrorCode::kFormat, message + " (remove the directory to expand only the weights)");
  }
  if (!misshapen.empty()) throw Error(ErrorCode::kShape, cat(folder, ": ", join_some(misshapen, kListed, "; ")));
  return state;
}

Checkpoint::Entry OptimizerState::at(std::string_view weight, std::string_view name) const {
  const auto found = entries_.find(cat(weight, ".", name));
  if (found != entries_.end()) return found->second;
  throw Error(ErrorCode::kNotFound, cat("optimizer state: no '", weight, ".", name, "'"));
}

bool OptimizerState::has(std::string_view weight, std::string_view name) const {
  return entries_.contains(cat(weight, ".", name));
}

bool OptimizerState::has_master(std::string_view tensor) const { return has(tensor, "master"); }

}  // namespace coppice::models
