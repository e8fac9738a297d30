#pragma once

// A growth plan fixes, for each MoE layer, the parent of every expert. It is plain data, made once from configuration,
// scores and seed. Both users (`expand` on disk, the trainer in memory) and all parts (experts, router, optimizer,
// balancing) read the same plan.

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

/// A number of experts as the user writes it: "2x", "1.5x" or "48".
struct ExpertCount {
  std::string text = "2x";

  /// The number of experts afterwards for a model with `experts`. Throws Error{kUsage} if it is not a whole number or
  /// not more than `experts`.
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
  std::string balance_bias = "copy";       ///< selection bias of a new expert: its parent's (copy) or 0 (zero)
  std::string select = "uniform";          ///< how the parents were chosen; only recorded
  std::vector<methods::LayerPlan> layers;  ///< MoE layers in rising order
  int64_t top_k_factor = 1;  ///< factor of the model's top-K: 1, or the number of children of every expert
  /// If above 1, each expert is cut along its intermediate units into this many narrower experts, its children; copy c
  /// is part c.
  int64_t split = 1;
  /// Factors of every selection bias, down matrix and down bias. They follow from the model and the rest of the plan
  /// (set_factors), so plan files do not contain them.
  double selection_bias_factor = 1, down_factor = 1, down_bias_factor = 1;
  bool is_undo = false;  ///< an undo: the children are the originals of an earlier expansion, in their order

  const methods::LayerPlan& layer(int64_t index) const;  // the layer must exist (COPPICE_CHECK)
  const methods::MethodChoice& expert_init_of(int64_t layer_index) const;
  const methods::MethodChoice& router_init_of(int64_t layer_index) const;
  /// Copy numbers are not written: a parent's first child is the original, and the others are numbered in their order.
  Json to_json() const;
  /// Throws   Error{kFormat, kUsage} naming file, layer and expert: unknown keys and names, a number of experts that
  ///          differs from the plan's, a parent that does not exist, a missing original.
  static GrowthPlan from_json(const Json& json, std::string_view source);
  /// Reads the file without the factors, which depend on the model; see read_plan.
  static GrowthPlan read(const std::filesystem::path& path);
  bool operator==(const GrowthPlan&) const = default;
};

/// The user's options of an expansion; shared by `expand`, [[growth]] tables of the trainer and the demo.
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
  bool allow_regroup = false;  ///< experts may be moved to other router groups
  bool scale_top_k = false;    ///< multiply top-K by N / E, which must be a whole number
  int64_t split = 1;  ///< above 1: cut every expert into this many parts instead of copying; `experts` is then ignored
};

struct Scores;  // utility.h

/// Throws   Error{kUsage}: unknown names (with the nearest), N <= E, bias_only without a bias, groups that cannot be
///          kept; Error{kNonFinite}: scores with NaN, infinity or a negative, naming layer and expert.
///          Error{kUnsupported}: a dense model.
GrowthPlan make_plan(const families::ModelConfig& config, const GrowthOptions& options, const Scores* scores);

/// The same plan in canonical form: every method with all its parameters, and a method of a layer only if it differs
/// from the plan's. Plans with the same meaning have equal canonical forms.
GrowthPlan canonical(GrowthPlan plan);

/// Throws   Error{kUsage} naming layer and expert if `plan` does not fit the model: another number of experts, other
///          layers, a method that needs a bias or a second expert that the model does not have, experts that leave
///          their router group (unless allowed).
void check_plan(const families::ModelConfig& config, const GrowthPlan& plan, bool allow_regroup);

/// Sets the factors of tensors that make the gates of a parent's children add up to the parent's gate.
void set_factors(const families::ModelConfig& config, GrowthPlan& plan);

/// The plan's factor of an expert's tensor with this role.
double expert_factor(const GrowthPlan& plan, families::Role role);

/// Reads a plan that `expand --dry-run` printed and the user may have edited, and checks it against a model.
///
/// Throws   what GrowthPlan::from_json and check_plan throw.
GrowthPlan read_plan(const std::filesystem::path& path, const families::ModelConfig& config, bool allow_regroup);

/// config.json of the expanded model.
///
/// Throws   Error{kUnsupported} if top-K is to change and the family fixes it.
Json grown_config(const families::ModelConfig& config, const GrowthPlan& plan);

/// Whether a new model computes the same function as before, with the reason as one sentence for the user.
struct Exactness {
  bool exact = false;
  std::string reason;
  bool known = true;  ///< false: it cannot be decided; `exact` is then false
};

}  // namespace coppice::plan
