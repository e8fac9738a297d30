#pragma once

// A conversion plan fixes what a dense model's feed-forward layers become: which layers get experts, which slice of
// which parent each expert is, and by what its matrices are scaled. Plain data; writing, account and verification read
// the same one.

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

/// What experts are multiplied by, so that the gates of a token's K experts add up to what the dense layer had.
struct ExpertScale {
  double gate = 1, up = 1, down = 1;
  bool operator==(const ExpertScale&) const = default;
};

struct ConversionPlan {
  std::string from, to;  ///< model types
  uint64_t seed = 0;
  int64_t parents = 1;             ///< dense models, each cut into `granularity` slices
  int64_t experts = 0, top_k = 0;  ///< E and K of every layer with experts
  int64_t granularity = 1;         ///< G
  bool virtual_groups = true;      ///< a router row for each G experts, which hold all slices
  std::string routing;             ///< softmax_topk, topk_softmax or sigmoid_topk
  bool renormalise = true;         ///< the K gates are divided by their sum (softmax_topk, sigmoid_topk)
  ExpertScale scale;
  methods::MethodChoice expert_init{"copy", {}};  ///< of copies of a slice
  bool init_all = false;                          ///< of its first expert too
  methods::MethodChoice router{"random", {}};
  std::string router_digest;  ///< of the file of rows, if they come from one
  int64_t shared_width = 0;
  std::string trunk = "average";  ///< of several parents: average or first
  bool lossy = false;             ///< what the family cannot hold is left out
  /// Layers with experts, rising. A child's parent counts slices: slice s of dense model p is p * G + s; copies of a
  /// slice count 0, 1, 2 ...
  std::vector<methods::LayerPlan> layers;

  int64_t slices() const { return parents * granularity; }
  int64_t experts_a_row() const { return virtual_groups ? granularity : 1; }  ///< that have equal router rows
  const methods::LayerPlan* find_layer(int64_t layer) const;                  ///< nullptr: it stays dense
  Json to_json() const;
  /// Throws   Error{kFormat, kUsage} naming `source` and the key.
  static ConversionPlan from_json(const Json& json, std::string_view source);
  bool operator==(const ConversionPlan&) const = default;
};

/// The same plan with every parameter of its methods, as records hold it.
ConversionPlan canonical(ConversionPlan plan);

/// What the user may choose.
struct ConversionOptions {
  std::optional<std::string> to;
  std::optional<int64_t> experts, top_k;  ///< default: 8 and 2 times the granularity
  int64_t granularity = 1;
  bool virtual_groups = true;
  std::optional<std::string> routing;
  std::string scale = "cbrt";
  bool calibrate = false;
  std::optional<int64_t> every;                ///< every so many-th layer gets experts ...
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
/// Throws   Error{kUsage}: numbers that do not fit together, naming them; what the family cannot express (a routing
///          order, layers that stay dense, a shared expert); unknown names with the nearest; settings without effect.
ConversionPlan make_conversion_plan(const families::ModelConfig& config, int64_t parents,
                                    const ConversionOptions& options);

/// Throws   Error{kUsage} as make_conversion_plan, for a plan of any origin.
void check_conversion_plan(const families::ModelConfig& config, const ConversionPlan& plan);

/// Do the gates of a token's experts add up to 1, whatever the logits?
bool gates_sum_to_one(const ConversionPlan& plan);

/// By what all experts together are multiplied (a), so that the function stays.
///
/// Source   arXiv:2410.07524 section 3: G, or E G / K = X G^2 / K where gates are shares of a softmax over all experts
///          (right for equal logits); 2 G / K for sigmoids that are not renormalised.
double function_scale(const ConversionPlan& plan);

/// How much more than with equal logits a token's K gates add up to, on average over 2^17 draws of logits N(0, std^2).
double calibration_factor(const ConversionPlan& plan, double logit_std);

/// The scale a of `function_scale`, spread over the matrices as `mode` says. `calibrate`: a is divided by
/// `calibration_factor`.
///
/// Throws   Error{kUsage}: no such mode, or a calibration without effect.
ExpertScale expert_scale(const ConversionPlan& plan, std::string_view mode, bool calibrate, int64_t model_dim);

/// Does the converted model compute what the dense one does (`activation` is its hidden_act), and why or why not.
plan::Exactness conversion_exactness(const ConversionPlan& plan, std::string_view activation);

}  // namespace coppice::convert
