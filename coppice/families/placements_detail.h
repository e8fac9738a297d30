#pragma once

// Placing the tensors of a checkpoint by the family's table where the weights, not the configuration, say which there
// are.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/families/rule_index_detail.h"

namespace coppice::families::detail {

/// What is wrong with a checkpoint's tensors: the first of each kind by name, the rest by number.
struct Misses {
  std::vector<std::string> first;
  size_t count = 0;

  void add(const std::string& text);
  std::string text() const;
};
struct Faults {
  Misses missing, unknown, misshapen;
  Misses carried;  ///< left unchanged by their rules, and of experts
  Misses unfit;    ///< of an expert, with sides that differ from those of its other matrices
};

/// One tensor with its place; `slot.rule` is the rule that surgery goes by, `matched` the one that has the name.
struct Placed {
  TensorSlot slot;
  const TensorRule* matched = nullptr;
  bool is_companion = false;
  std::string suffix = {};  ///< of a companion: what sets its name apart
  std::optional<io::Dtype> dtype = {};
};

/// A name as the family's table has it. Multimodal models put the language model below a prefix.
struct CanonicalName {
  std::string name;
  bool in_text = true;  ///< it is of the language model
};
CanonicalName canonical_name(const ModelConfig& config, std::string_view name);

/// Stacked matrices of some families lie [in, out] or [out, in], whichever wrote them. All of a model's tell which,
/// those with one shape only by what the others say.
///
/// Throws   Error{kFormat} if some lie one way and some the other.
void settle_orientation(const ModelConfig& config, std::vector<Placed>& placed);

/// The place of one tensor; nullopt if the table has none for it. A multimodal model's names lose what the language
/// model's have in front, and what is not a part of the language model is carried over (but experts of its own).
std::optional<Placed> place(const ModelConfig& config, const RuleIndex& index, const io::TensorName& name,
                            const io::TensorShape& shape);

/// In the order in which tables list tensors: layer by layer, expert by expert.
void sort_by_table(const ModelConfig& config, std::vector<Placed>& placed);

/// Holds every layer of `placed` that has experts to the table: each row of experts and routers there, experts counted
/// from 0 to num_experts without a gap, shapes that agree with their number.
void check_experts(const ModelConfig& config, const std::vector<Placed>& placed, Faults& faults);

/// Holds what a family file's rules carry over to what cannot be carried: tensors of an expert, and those that have a
/// dimension of the number of experts and are named for experts or lie in a router's module (but for the layers below a
/// router that a rule names whole).
void check_carried(const ModelConfig& config, const std::vector<Placed>& placed, Faults& faults);

/// Holds gate, up and down of every layer's experts, and their biases, to one width and one model dimension.
void check_expert_shapes(const ModelConfig& config, const std::vector<Placed>& placed, Faults& faults);

/// True of a model_type that is known and cannot grow by copying.
bool is_refused(std::string_view model_type);

/// The family whose table has most of the checkpoint's tensors (of a sample of them); nullptr if none has a third.
const Family* nearest_family(const io::Checkpoint& checkpoint);

}  // namespace coppice::families::detail
