#pragma once

// Assigns rules to the tensors of a checkpoint if the weights, not the configuration, determine which tensors exist.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/families/rule_index_detail.h"

namespace coppice::families::detail {

/// Problems of a checkpoint's tensors: the names of the first few of each kind, and the number of the rest.
struct Misses {
  std::vector<std::string> first;
  size_t count = 0;

  void add(const std::string& text);
  std::string text() const;
};
struct Faults {
  Misses missing, unknown, misshapen;
  Misses carried;  ///< copied unchanged by their rules, but belong to experts
  Misses unfit;    ///< of an expert, with dimensions that do not fit its other matrices
};

/// One tensor with its rule; `slot.rule` is the rule that is used, `matched` the one that matched the name.
struct Placed {
  TensorSlot slot;
  const TensorRule* matched = nullptr;
  bool is_companion = false;
  std::string suffix = {};  ///< for a companion: the suffix of its name
  std::optional<io::Dtype> dtype = {};
};

/// A name as in the family's table, without the prefix of multimodal models.
struct CanonicalName {
  std::string name;
  bool in_text = true;  ///< it belongs to the language model
};
CanonicalName canonical_name(const ModelConfig& config, std::string_view name);

/// In some families stacked matrices are [in, out] or [out, in], depending on the program that wrote them. The shapes
/// of all matrices decide; square ones follow the others.
///
/// Throws   Error{kFormat} if the matrices have different orientations.
void settle_orientation(const ModelConfig& config, std::vector<Placed>& placed);

/// The rule of one tensor; nullopt if no rule matches. In multimodal models the text prefix (`model.language_model.`)
/// is stripped before matching. Tensors outside the language model are copied; experts there are an error.
std::optional<Placed> place(const ModelConfig& config, const RuleIndex& index, const io::TensorName& name,
                            const io::TensorShape& shape);

/// Assigns rules to tensors that the checkpoint does not have in this form; as match where the weights decide.
std::vector<TensorSlot> match_tensors(const ModelConfig& config, const io::Checkpoint& checkpoint,
                                      std::span<const io::TensorInfo> tensors);

/// Sorts into the order of the tables: layer by layer, expert by expert.
void sort_by_table(const ModelConfig& config, std::vector<Placed>& placed);

/// Checks every MoE layer of `placed`: all rules of experts and routers are matched, experts are numbered from 0 to
/// num_experts without a gap, and shapes agree with their number.
void check_experts(const ModelConfig& config, const std::vector<Placed>& placed, Faults& faults);

/// Checks that a family file's rules do not copy tensors that must change: tensors of an expert, and tensors that have
/// a dimension with the number of experts and whose name refers to experts or which are in a router's module (except
/// layers below a router that a rule names completely).
void check_carried(const ModelConfig& config, const std::vector<Placed>& placed, Faults& faults);

/// The dimensions of a matrix or bias of an expert that are known to be the expert's width or the model dimension.
struct Sides {
  int64_t width = 0, model = 0;  ///< 0: it has no such dimension
};
Sides sides_of(const TensorSlot& slot, int64_t experts);

/// Checks that gate, up and down of every layer's experts, and their biases, have the same width and model dimension.
void check_expert_shapes(const ModelConfig& config, const std::vector<Placed>& placed, Faults& faults);

/// Whether a model_type is known but cannot be expanded by copying experts.
bool is_refused(std::string_view model_type);

/// The family whose table matches most of the checkpoint's tensors (of a sample); nullptr if none matches a third.
const Family* nearest_family(const io::Checkpoint& checkpoint);

}  // namespace coppice::families::detail
