#pragma once

// What the fuzzers share.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/models/generate.h"

namespace coppice::fuzz {

/// Ends the process where `holds` is false: the fuzzer has found something.
inline void require(bool holds) {
  if (!holds) std::abort();
}

/// An error is about the input, and of one of these codes; a bug of ours, say, never is.
inline void require_refusal(const Error& error, std::initializer_list<ErrorCode> codes) {
  for (const ErrorCode code : codes) {
    if (error.code == code) return;
  }
  std::abort();
}

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Configurations of 2 layers of 4 experts: softmax with and without renormalising, sigmoid with a selection bias and
/// groups, router biases.
inline const std::vector<families::ModelConfig>& tiny_configs() {
  static const auto configs = [] {
    std::vector<families::ModelConfig> out;
    for (const char* family : {"mixtral", "qwen3_moe", "glm4_moe", "gpt_oss"}) {
      models::ModelSizes sizes;
      sizes.family = family;
      sizes.num_layers = 2;
      sizes.num_experts = 4;
      sizes.first_dense_layers = 0;
      out.push_back(families::read_config(models::make_config(sizes, io::Dtype::kBf16), family));
    }
    return out;
  }();
  return configs;
}

/// Models of these configurations, with random weights.
inline const std::vector<families::Model>& tiny_models() {
  static const auto models = [] {
    std::vector<families::Model> out;
    std::string directory = (std::filesystem::temp_directory_path() / "coppice-fuzz-XXXXXX").string();
    require(::mkdtemp(directory.data()) != nullptr);
    for (const families::ModelConfig& config : tiny_configs()) {
      const auto path = std::filesystem::path(directory) / config.family->model_type;
      models::write_random_model(path, config.json, io::Dtype::kBf16, 1);
      out.push_back(families::open_model(path));
    }
    std::filesystem::remove_all(directory);  // the files stay open
    return out;
  }();
  return models;
}

}  // namespace coppice::fuzz
