#pragma once

// A conversion plan says what a dense model's feed-forward layers are converted to: which layers get experts, which
// slice of which parent each expert is, and how its matrices are scaled. It is plain data; `convert` and `verify` use
// the same plan.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/model_config.h"
#include "coppice/methods/params.h"
#include "coppice/plan/plan.h"

namespace coppice::convert {

/// Factors of the experts' matrices that make up for the gates of a token's K experts.
struct ExpertScale {
  double gate = 1, up = 1, down = 1;
  bool operator==(const ExpertScale&) const = default;
};

struct ConversionPlan {
  std::string from, to;  ///< model types
  uint64_t seed = 0;
  int64_t parents = 1;             ///< number of dense models, each cut into `granularity` slices
  int64_t experts = 0, top_k = 0;  ///< E and K of every MoE layer
  int64_t granularity = 1;         ///< G
  bool virtual_groups = true;      ///< G experts with all slices of a layer share one router row
  std::string routing;             ///< softmax_topk, topk_softmax or sigmoid_topk
  bool renormalise = true;         ///< the K gates are divided by their sum (softmax_topk, sigmoid_topk)
  ExpertScale scale;
  methods::MethodChoice expert_init{"copy", {}};  ///< method for copies of a slice
  bool init_all = false;                          ///< also applied to the first expert of each slice
  methods::MethodChoice router{"random", {}};
  std::string router_digest;  ///< digest of the router rows, if they were read from a file
  int64_t shared_width = 0;
  std::string trunk = "average";  ///< with several parents: average or first
  bool lossy = false;             ///< what the family cannot express is left out
  /// MoE layers in rising order. A child's parent is the index of a slice: slice s of dense model p is p * G + s.
  /// Copies of a slice are numbered 0, 1, 2 ...
  std::vector<methods::LayerPlan> layers;

  int64_t slices() const { return parents * granularity; }
  int64_t experts_a_row() const {
    return virtual_groups ? granularity : 1;
  }  ///< number of experts that share a router row
  const methods::LayerPlan* find_layer(int64_t layer) const;  ///< nullptr if the layer stays dense
  Json to_json() const;
  /// Throws   Error{kFormat, kUsage} naming `source` and the key.
  static ConversionPlan from_json(const Json& json, std::string_view source);
  bool operator==(const ConversionPlan&) const = default;
};

/// The same plan with every parameter of its methods, as the lineage records it.
ConversionPlan canonical(ConversionPlan plan);

/// The user's options.
struct ConversionOptions {
  std::optional<std::string> to;
  std::optional<int64_t> experts, top_k;  ///< default: 8 and 2 times the granularity
  int64_t granularity = 1;
  bool virtual_groups = true;
  std::optional<std::string> routing;
  std::string scale = "cbrt";
  bool calibrate = false;
  std::optional<int64_t> every;                ///< every N-th layer gets experts ...
  std::optional<std::vector<int64_t>> layers;  ///< ... or these
  int64_t shared_width = 0;
  methods::MethodChoice expert_init{"copy", {}};
  bool init_all = false;
  methods::MethodChoice router{"random", {}};
  std::string router_digest;
  std::string trunk = "average";
  uint64_t seed = 0;
  bool lossy = false;
};

struct ScaleMode {
  std::string_view name, summary, source;
};
std::span<const ScaleMode> scale_modes();

/// The plan for `parents` dense models of the configuration `config`.
///
/// Throws   Error{kUsage}: numbers that do not fit together; what the family cannot express (a routing order, dense
///          layers, a shared expert); unknown names, with the nearest; settings without effect.
ConversionPlan make_conversion_plan(const families::ModelConfig& config, int64_t parents,
                                    const ConversionOptions& options);

/// Throws   Error{kUsage} as make_conversion_plan, for a plan from anywhere.
void check_conversion_plan(const families::ModelConfig& config, const ConversionPlan& plan);

/// Whether the gates of a token's experts always add up to 1.
bool gates_sum_to_one(const ConversionPlan& plan);

/// The factor a of all experts that keeps the function.
///
/// Source   arXiv:2410.07524 section 3: G, or E G / K = X G^2 / K where gates are shares of a softmax over all experts
///          (exact for equal logits); 2 G / K for sigmoids that are not renormalised.
double function_scale(const ConversionPlan& plan);

/// The mean sum of a token's K gates over 2^17 samples of logits N(0, std^2), divided by the sum for equal logits.
double calibration_factor(const ConversionPlan& plan, double logit_std);

/// The scale a of `function_scale`, spread over the matrices as `mode` says. `calibrate`: a is divided by
/// `calibration_factor`.
///
/// Throws   Error{kUsage}: no such mode, or a calibration without effect.
ExpertScale expert_scale(const ConversionPlan& plan, std::string_view mode, bool calibrate, int64_t model_dim);

/// Whether the model that the plan makes of a dense one computes the same function, with the reason. `activation` is its
/// hidden_act; its experts have `width` units and `model_dim` inputs.
plan::Exactness conversion_exactness(const ConversionPlan& plan, std::string_view activation, int64_t width,
                                     int64_t model_dim);

}  // namespace coppice::convert
