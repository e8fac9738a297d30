#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/train/options.h"
#include "tests/testing/token_files.h"

namespace coppice::testing {

/// A run of seconds: 2 layers of 4 experts, 32 ids, 8 sequences of 16 tokens per step in micro-batches of 3, 3 and 2.
inline train::TrainOptions tiny_run(const std::filesystem::path& directory) {
  train::TrainOptions o;
  const auto train = directory / "train", validation = directory / "val";
  if (!std::filesystem::exists(train.string() + ".bin")) {
    write_tokens(train, 32, 20, 200);
    write_tokens(validation, 32, 2, 100, 2);
  }
  o.data_train = {train};
  o.data_validation = {validation};
  o.vocab_size = 32;
  o.model_dim = 32;
  o.num_layers = 2;
  o.num_heads = 2;
  o.num_kv_heads = 1;
  o.head_dim = 16;
  o.num_experts = 4;
  o.top_k = 2;
  o.expert_width = 16;
  o.dense_width = 32;
  o.first_dense_layers = 0;
  o.sequence_length = 16;
  o.batch_tokens = 128;
  o.micro_batch = 3;
  o.steps = 20;
  o.warmup = 2;
  o.lr = 1e-2;
  o.dtype = "f32";
  o.threads = 1;
  return o;
}

/// Lines of a run's metrics.jsonl that hold `key`.
inline std::vector<Json> metrics(const std::filesystem::path& run, std::string_view key) {
  std::vector<Json> out;
  const std::string text = read_file(run / "metrics.jsonl");
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    Json line = Json::parse(std::string_view(text).substr(begin, end - begin), "metrics.jsonl");
    if (line.find(key) != nullptr) out.push_back(std::move(line));
  }
  return out;
}

/// What must not change between two ways to the same model: every number of each step but the speed.
inline std::vector<std::string> trajectory(const std::filesystem::path& run) {
  std::vector<std::string> out;
  for (Json& line : metrics(run, "loss")) {
    line.erase("tokens_per_s");
    line.erase("gemm_share");
    out.push_back(line.dump());
  }
  return out;
}

/// Every step's loss and gradient norm, to the last bit; each part of a run ends with a validation, the whole does not.
inline std::vector<std::string> exact_losses(const std::filesystem::path& run) {
  std::vector<std::string> out;
  for (const Json& line : testing::metrics(run, "loss")) {
    out.push_back(cat(line.at("step").dump(), " ", line.at("loss").dump(), " ", line.at("grad_norm").dump()));
  }
  return out;
}

/// All that metrics.jsonl says of a run but speeds, and what tells of checkpoints and interruptions.
inline std::vector<std::string> record(const std::filesystem::path& run) {
  std::vector<std::string> out;
  for (Json& line : metrics(run, "step")) {
    const Json* const event = line.find("event");
    const std::string name = event != nullptr ? event->as_string() : "";
    if (name == "checkpoint" || name == "resume" || name == "interrupt" || name == "error") continue;
    line.erase("tokens_per_s");
    line.erase("gemm_share");
    out.push_back(line.dump());
  }
  return out;
}

/// The bytes of every tensor file of a checkpoint, by relative path.
inline std::vector<std::pair<std::string, std::string>> tensor_files(const std::filesystem::path& checkpoint) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(checkpoint)) {
    if (entry.path().extension() != ".safetensors") continue;
    out.emplace_back(entry.path().lexically_relative(checkpoint).string(), read_file(entry.path()));
  }
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace coppice::testing
