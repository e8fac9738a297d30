#pragma once

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/grow/expand.h"
#include "coppice/io/atomic_file.h"
#include "coppice/models/optimizer_state.h"
#include "coppice/plan/plan.h"
#include "tests/testing/tiny_models.h"

namespace coppice::testing {

using Bytes = std::vector<std::byte>;

inline Bytes bytes_of(const io::Checkpoint::Entry& entry) { return {entry.data().begin(), entry.data().end()}; }

inline std::map<std::string, Bytes> tensors_of(const std::filesystem::path& model) {
  std::map<std::string, Bytes> tensors;
  const auto checkpoint = io::Checkpoint::open(model);
  for (const std::string& name : checkpoint.names()) tensors[name] = bytes_of(checkpoint.at(name));
  return tensors;
}

/// Every file by its path below `directory`.
inline std::map<std::string, std::string> files_of(const std::filesystem::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& file : std::filesystem::recursive_directory_iterator(directory)) {
    if (file.is_directory()) continue;
    files[file.path().lexically_relative(directory).string()] = read_file(file.path());
  }
  return files;
}

inline Json edit_json(const std::filesystem::path& path, const auto& edit) {
  Json json = Json::read(path);
  edit(json);
  io::write_file_atomically(path, json.dump(2));
  return json;
}

/// Grows `from` into `to`; returns the plan.
inline plan::GrowthPlan grow(const std::filesystem::path& from, const std::filesystem::path& to,
                             const plan::GrowthOptions& options, output::OutputSettings settings = {}) {
  const auto model = families::open_model(from);
  const auto plan = plan::make_plan(model.config, options, nullptr);
  settings.out = to;
  (void)grow::expand(model, plan, settings);
  return plan;
}

/// Name of an expert's or router's tensor.
inline std::string name_of(const families::Model& model, families::Role role, int64_t layer, int64_t expert = -1) {
  return families::tensor_name(model.config, role, layer, expert);
}

/// Adam has something to train in the slot: no selection bias, not empty.
inline bool is_trained(const families::TensorSlot& slot) {
  return slot.role() != families::Role::kSelectionBias && std::ranges::find(slot.shape, 0) == slot.shape.end();
}

/// Writes trainer/ beside a model: masters near the weights, moments and steps that differ from tensor to tensor.
inline void write_trainer(const std::filesystem::path& directory, size_t shards = 2) {
  const auto model = families::open_model(directory);
  struct Filled {
    io::TensorInfo info;
    Bytes bytes;
  };
  std::vector<Filled> tensors;
  const auto add_floats = [&](const std::string& name, const std::vector<int64_t>& shape, std::vector<float> values) {
    Filled filled{output::tensor_info(name, io::Dtype::kF32, shape), {}};
    filled.bytes.resize(filled.info.bytes);
    std::memcpy(filled.bytes.data(), values.data(), filled.info.bytes);
    tensors.push_back(std::move(filled));
  };
  int64_t count = 0;
  for (const auto& slot : model.slots) {
    if (!is_trained(slot)) continue;
    ++count;
    std::vector<float> values = model.checkpoint.read_f32(slot.name);
    const bool router = slot.role() == families::Role::kRouter || slot.role() == families::Role::kRouterBias;
    if (model.checkpoint.at(slot.name).info->dtype != io::Dtype::kF32) {
      std::vector<float> master = values;
      for (float& x : master) x *= 1.0f + 0x1p-12f;  // rounds back to the same bf16
      add_floats(slot.name + ".master", slot.shape, master);
    }
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = static_cast<float>(count) + 0.25f * static_cast<float>(i % 7);
    add_floats(slot.name + ".exp_avg", slot.shape, values);
    for (float& x : values) x *= x;
    add_floats(slot.name + ".exp_avg_sq", slot.shape, values);
    const bool counts_rows = router || slot.rule->layout.stacked;
    std::vector<int64_t> steps(counts_rows ? static_cast<size_t>(model.config.num_experts) : 1);
    for (size_t i = 0; i < steps.size(); ++i) steps[i] = 100 * count + static_cast<int64_t>(i);
    Filled step{output::tensor_info(slot.name + ".step", io::Dtype::kI64, {static_cast<int64_t>(steps.size())}), {}};
    step.bytes.resize(step.info.bytes);
    std::memcpy(step.bytes.data(), steps.data(), step.info.bytes);
    tensors.push_back(std::move(step));
  }
  const auto folder = directory / io::kTrainerFolder;
  std::filesystem::create_directory(folder);
  io::write_file_atomically(folder / io::kTrainerFile, R"({"step": 7})");
  for (size_t shard = 0; shard < shards; ++shard) {
    std::vector<io::TensorInfo> infos;
    for (size_t i = shard; i < tensors.size(); i += shards) infos.push_back(tensors[i].info);
    const std::string name =
        "optimizer-0000" + std::to_string(shard + 1) + "-of-0000" + std::to_string(shards) + ".safetensors";
    io::SafetensorsWriter writer(folder / name, infos);
    for (size_t i = shard; i < tensors.size(); i += shards) {
      writer.write(writer.tensor(tensors[i].info.name), 0, tensors[i].bytes);
    }
    writer.finish();
  }
}

}  // namespace coppice::testing
