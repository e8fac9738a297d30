#pragma once

#include <filesystem>
#include <string_view>
#include <vector>

#include "coppice/models/generate.h"

namespace coppice::testing {

/// The families whose models coppice can make.
inline std::vector<const families::Family*> trained_families() {
  std::vector<const families::Family*> trained;
  for (const families::Family* family : families::all_families()) {
    if (!family->surgery_only) trained.push_back(family);
  }
  return trained;
}

struct TinyModel {
  models::ModelSizes sizes = {};  ///< `family` is set from the argument
  Json config = Json::object();   ///< members that replace or join those of config.json
  io::Dtype dtype = io::Dtype::kF32;
  uint64_t seed = 1;
  double std = 0.05;
  uint64_t max_shard_bytes = uint64_t{5} << 30;
};

/// Writes a random checkpoint of any family into `directory` (which must not exist) and returns it:
///
///   tiny_model(dir / "m", "olmoe", {.sizes = {.num_experts = 8}, .dtype = io::Dtype::kBf16});
inline std::filesystem::path tiny_model(const std::filesystem::path& directory, std::string_view family = "qwen3_moe",
                                        TinyModel overrides = {}) {
  overrides.sizes.family = family;
  if (families::family_of(family).has_latent_attention) overrides.sizes.num_kv_heads = overrides.sizes.num_heads;
  Json config = models::make_config(overrides.sizes, overrides.dtype);
  for (const auto& [key, value] : overrides.config.members()) config[key] = value;
  models::write_random_model(directory, config, overrides.dtype, overrides.seed, overrides.std,
                             overrides.max_shard_bytes);
  return directory;
}

}  // namespace coppice::testing
