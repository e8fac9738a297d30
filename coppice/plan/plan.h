#pragma once

// A growth plan fixes, for each MoE layer, the parent of every expert. Plain data, made once from configuration, scores
// and seed; every carrier (disk, memory) and every part (experts, router, optimizer, balancing) reads the same one.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/model_config.h"
#include "coppice/methods/children.h"
#include "coppice/methods/params.h"

namespace coppice::plan {

// Values of `balance_bias`.
inline constexpr std::string_view kBalanceBiasCopy = "copy";
inline constexpr std::string_view kBalanceBiasZero = "zero";

/// "2x", "1.5x" or "48".
struct ExpertCount {
  std::string text = "2x";

  /// The number meant for a model with `experts`. Throws Error{kUsage}: not a whole number of experts, or not more than
  /// `experts`.
  int64_t resolve(int64_t experts) const;
  static ExpertCount from_text(std::string_view text);  // Throws Error{kUsage}
  std::string to_text() const { return text; }
  bool operator==(const ExpertCount&) const = default;
};

enum class Order { kAppend, kSiblings };

struct GrowthPlan {
  uint64_t seed = 0;
  int64_t experts_before = 0, experts_after = 0;
  Order order = Order::kAppend;
  methods::MethodChoice expert_init{"copy", {}}, router_init{"copy", {}}, optimizer_state{"copy", {}};
  std::string balance_bias = "copy";       ///< selection bias of a child: its parent's (copy) or 0 (zero)
  std::string select = "uniform";          ///< how the parents were chosen (for the record)
  std::vector<methods::LayerPlan> layers;  ///< MoE layers, rising
  int64_t top_k_factor = 1;                ///< the model's top-K times this: 1, or the children of every expert
  /// Above 1: each expert is cut along its units into so many narrower ones, its children; copy c is part c.
  int64_t split = 1;
  /// What every selection bias, down matrix and down bias is multiplied by. They follow from the model and the rest of
  /// the plan (set_factors), so no file holds them.
  double selection_bias_factor = 1, down_factor = 1, down_bias_factor = 1;
  bool is_undo = false;  ///< a contraction: children are originals of an earlier growth, in their order

  const methods::LayerPlan& layer(int64_t index) const;  // COPPICE_CHECK that it is there
  const methods::MethodChoice& expert_init_of(int64_t layer_index) const;
  const methods::MethodChoice& router_init_of(int64_t layer_index) const;
  /// Copies are not written: a parent's first child is the original, the others count in their order.
  Json to_json() const;
  /// Throws   Error{kFormat, kUsage} naming file, layer and expert: unknown keys and names, another number of experts
  ///          than the plan's, a parent that is none of the E, an original that is missing.
  static GrowthPlan from_json(const Json& json, std::string_view source);
  /// The file as it stands, without the factors, which need the model: read_plan.
  static GrowthPlan read(const std::filesystem::path& path);
  bool operator==(const GrowthPlan&) const = default;
};

/// What the user may choose; shared by `expand`, expansion during training and the demo.
struct GrowthOptions {
  ExpertCount experts;
  std::optional<std::string> select;  ///< default: waterfill with scores, else uniform
  double temperature = 1.0;           ///< weighted_sampling
  std::string metric = "gradient_squared";
  std::string layer_selection = "both_average";
  std::optional<uint64_t> max_duplicates;  ///< default 3; waterfill: none
  methods::MethodChoice expert_init{"copy", {}};
  std::optional<methods::MethodChoice>
      router_init;  ///< default: bias_only where the family has a router or selection bias, else perturb_new_only
  std::string balance_bias = "copy";
  methods::MethodChoice optimizer_state{"copy", {}};
  std::optional<std::string> order;  ///< append or siblings; default siblings where n_group > 1
  uint64_t seed = 0;
  bool allow_regroup = false;  ///< experts may leave their router group
  bool scale_top_k = false;    ///< top-K grows with the experts: N is a multiple of E
  int64_t split = 1;           ///< above 1: cut every expert into so many instead of copying; `experts` is not read
};

struct Scores;  // utility.h

/// Throws   Error{kUsage}: unknown names (with the nearest), N <= E, bias_only without a bias, groups that cannot be
///          kept; Error{kNonFinite}: scores with NaN, infinity or a negative, naming layer and expert.
///          Error{kUnsupported}: a dense model.
GrowthPlan make_plan(const families::ModelConfig& config, const GrowthOptions& options, const Scores* scores);

/// The same plan as records hold it: every method with all its parameters, and a layer's own only where it is another
/// than the plan's. Plans that mean the same are equal then.
GrowthPlan canonical(GrowthPlan plan);

/// Throws   Error{kUsage} naming layer and expert where `plan` does not fit the model: another number of experts, other
///          layers, a method that needs a bias or a second expert that the model has not, experts that leave their
///          router group (unless allowed).
void check_plan(const families::ModelConfig& config, const GrowthPlan& plan, bool allow_regroup);

/// Sets what the plan multiplies tensors by, so that the gates of a parent's children add up to its own.
void set_factors(const families::ModelConfig& config, GrowthPlan& plan);

/// What the plan multiplies an expert's tensor of this role by.
double expert_factor(const GrowthPlan& plan, families::Role role);

/// A plan as `expand --dry-run` prints it, possibly edited, for a model.
///
/// Throws   what GrowthPlan::from_json and check_plan throw.
GrowthPlan read_plan(const std::filesystem::path& path, const families::ModelConfig& config, bool allow_regroup);

/// config.json of the expanded model.
///
/// Throws   Error{kUnsupported} if top-K is to change and the family fixes it.
Json grown_config(const families::ModelConfig& config, const GrowthPlan& plan);

/// Does a new model compute the same function as before, and why (or why not): one sentence for the user.
struct Exactness {
  bool exact = false;
  std::string reason;
  bool known = true;  ///< false: neither can be said; `exact` is false then
};

}  // namespace coppice::plan
