#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string_view>

#include "coppice/base/json.h"
#include "coppice/families/family.h"

namespace coppice::families {

/// A family as data, for expanding: a TOML file of the user (--family-file), or one of those in tables/ that are part of
/// the program. The two forms are the same.
///
///   model_type = "my_moe"
///   experts_keys = ["num_experts"]           # aliases; all present are rewritten
///   top_k_key = "num_experts_per_tok"
///   gate = "softmax_topk"                    # topk_softmax, sigmoid_topk, unknown; without it: unknown
///   renormalise = "norm_topk_prob"           # or true, false, { key = ..., default = true }; without it: unknown
///   tensors = [
///     { name = "model.layers.{L}.mlp.gate.weight", role = "router" },
///     { name = "model.layers.{L}.mlp.experts.{X}.gate_proj.weight", role = "expert_gate" },
///     { name = "model.layers.{L}.mlp.experts.down_proj", role = "expert_down", stacked = true },
///   ]
///
/// `role` is a role_name(); a tensor may also be transposed, interleaved (Layout) and optional. docs/families.md lists
/// every key. With `like` the file takes everything that it does not say from another family. What a file does not say
/// is unknown: this does not prevent an expansion, but then no verdict says that it is exact.
class FamilyFile {
 public:
  struct State;
  /// Finds the family that `like` names; nullptr if there is none.
  using Find = std::function<const Family*(std::string_view model_type)>;

  /// Throws   Error{kNotFound, kIo}; Error{kFormat} naming file and key: unknown keys and roles (with the nearest),
  ///          missing ones, names without the {L} and {X} that their role needs.
  static FamilyFile read(const std::filesystem::path& path);
  /// The same of the file's content; `source` names it in errors.
  static FamilyFile from_json(const Json& json, std::string_view source);
  static FamilyFile from_json(const Json& json, std::string_view source, const Find& find);
  FamilyFile(FamilyFile&&) noexcept;
  FamilyFile& operator=(FamilyFile&&) noexcept;
  ~FamilyFile();

  const Family& family() const;  ///< lives as long as this object
  Family& family();

 private:
  explicit FamilyFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace coppice::families
