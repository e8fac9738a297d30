#pragma once

#include <string>
#include <string_view>

#include "coppice/convert/plan.h"
#include "coppice/models/generate.h"

namespace coppice::testing {

/// A dense model of 4 layers of 48 units.
inline families::ModelConfig dense_config(std::string_view family = "llama", const Json& more = Json::object()) {
  models::ModelSizes sizes;
  sizes.family = family;
  sizes.num_layers = 4;
  sizes.dense_width = 48;
  Json json = models::make_config(sizes, io::Dtype::kF32);
  for (const auto& [key, value] : more.members()) json[key] = value;
  return families::read_config(json, "example");
}

inline convert::ConversionOptions conversion(std::string to, int64_t experts, int64_t top_k, int64_t granularity) {
  convert::ConversionOptions options;
  options.to = std::move(to);
  options.experts = experts;
  options.top_k = top_k;
  options.granularity = granularity;
  return options;
}

}  // namespace coppice::testing
