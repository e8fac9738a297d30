#pragma once

#include <span>
#include <string>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/upcycle/convert_families.h"
#include "coppice/upcycle/convert_plan.h"

namespace coppice::upcycle::detail {

/// What of a model's configuration is looked at besides sizes.
struct Traits {
  std::string activation;
  double rms_eps = 0, rope_theta = 0;
  bool tied = false, has_attention_bias = false, has_qk_norm = false;
  double embedding_scale = 1;
  int64_t head_dim = 0, num_kv_heads = 0;
  std::vector<int64_t> windows;  ///< [layers]; 0: all positions before
};
/// Throws   Error{kFormat} naming the key.
Traits traits_of(const families::ModelConfig& dense, std::span<const families::TensorSlot> slots);

/// config.json of the Mixture of Experts. Adds to `losses` what it cannot say.
Json moe_config(const families::ModelConfig& dense, const Traits& traits, const ConversionPlan& plan,
                std::vector<std::string>& losses);

/// config.json of a dense model of `family`, of the width of the experts.
Json dense_config(const families::ModelConfig& moe, const Traits& traits, const families::Family& family,
                  std::vector<std::string>& losses);

}  // namespace coppice::upcycle::detail
