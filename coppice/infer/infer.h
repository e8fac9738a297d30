#pragma once

// A family read from a checkpoint that no table describes: config.json and the names, shapes and dtypes of its tensors,
// no values. Four rules decide; what they leave open in any way is refused.
//
//   1. One number E in config.json counts the experts: every key that counts experts says E, none is a list or by layer,
//      no other key with the same number may count experts, and no other part of the file counts E experts.
//   2. Numbered experts run from 0 to E - 1, each with the same tensors, shapes and dtypes. Stacked ones have E as their
//      first dimension and as no other common one.
//   3. Each layer with experts has exactly one router with E rows. Whole numbers beside a router are refused, because
//      they may name experts. All layers of a tower have the same set of tensors.
//   4. Every other tensor with a dimension of E is explained: a value for each expert, or a size of something else. Where
//      E is also another size, only names that are conclusive count.
//
// What no rule can find out is unknown in the result: the gate function, whether gates are renormalised, what a bias is
// added to, which matrix is gate or up, how they alternate. So experts and their rows are copied; methods that change
// values by their purpose and claims that the function is kept need a family file that states it.

#include <span>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/family_file.h"
#include "coppice/infer/config_counts.h"
#include "coppice/io/checkpoint.h"

namespace coppice::infer {

/// How the experts of a model are stored, or what a row belongs to.
enum class Kind : uint8_t {
  kOther,     ///< carried unchanged
  kNumbered,  ///< a tensor of one expert
  kStacked,   ///< of all experts, along the first dimension
  kRouter,    ///< [E, model]
  kRow        ///< a value or a row for each expert
};

/// One kind of tensor: the same name in every layer and of every expert.
struct InferredTensor {
  std::string name;  ///< with {L} or {M}, and {X}, as in a family file
  Kind kind = Kind::kOther;
  std::string shape;         ///< of the first one: "[8, 64, 32]"
  std::string role;          ///< that the family file gives it
  std::string guess;         ///< the role that its name suggests; empty without
  size_t count = 0;          ///< tensors of this name
  int64_t first_layer = -1;  ///< as families::TensorRule::first_layer
};

struct Inferred {
  ExpertCount count;
  std::vector<InferredTensor> tensors;  ///< those of experts and routers
  std::vector<std::string> towers;      ///< "model.layers": where layers with experts lie, the largest first
  size_t carried = 0;                   ///< tensors that are copied unchanged
  bool has_mtp = false;                 ///< layers with experts past num_hidden_layers
  std::vector<std::string> notes;       ///< what was decided by less than a name: "... by its length alone"
  std::vector<std::string> tops;        ///< first words of all names
  std::vector<Kind> kinds;              ///< of every tensor, in the order of their names

  /// A family file, to be read by FamilyFile.
  Json to_json() const;
  /// The same as TOML with comments, for the user to read, mend and share.
  std::string to_toml() const;
  /// What was found, and by which rule, as lines of text.
  std::string to_text() const;
  /// The same as an object: {"family": to_json(), "experts": E, "keys": [...], "tensors": [{name, shape, rule, count}]}.
  Json findings() const;
};

/// Memory   about 60 bytes for each tensor.
/// Throws   Error{kUnsupported} naming the tensor or key, its shape and the rule.
Inferred infer(const io::Checkpoint& checkpoint);
/// The same of a configuration and what the headers say of the tensors, sorted by name.
Inferred infer(const Json& config, std::span<const io::TensorInfo* const> tensors);

/// An inference that was tried: the model opens with its family, and every tensor is placed as the rules found.
struct InferredFamily {
  Inferred inferred;
  families::FamilyFile file;
};
/// Throws   as infer; Error{kUnsupported} if names are such that a family file would place a tensor otherwise.
InferredFamily infer_family(io::Checkpoint checkpoint);

}  // namespace coppice::infer
