#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

#include "coppice/base/json.h"
#include "coppice/families/family.h"

namespace coppice::families {

/// A family that a user describes in a TOML file, for expanding: the same contents as the tables of this directory.
///
///   model_type = "my_moe"
///   experts_keys = ["num_experts"]           # aliases; all present are rewritten
///   top_k_key = "num_experts_per_tok"
///   gate = "softmax_topk"                    # topk_softmax, sigmoid_topk; without it: not known
///   renormalise = "norm_topk_prob"           # or true, false; without it: not known
///   [[tensors]]
///   name = "model.layers.{L}.mlp.experts.{X}.gate_proj.weight"
///   role = "expert_gate"                     # role_name() of a Role
///   [[tensors]]
///   name = "model.layers.{L}.mlp.experts.down_proj"
///   role = "expert_down"
///   stacked = true                           # and transposed, interleaved: Layout
///   optional = true
///
/// Further keys, with the meaning they have in Family: layers_key, model_dim_key, expert_width_key, dense_width_key,
/// trailing_key, num_groups_key, top_groups_key (texts), group_score (best or best_two; without it: not known), groups,
/// mtp, decoder_trunk (true or false; the last, true if absent, adds what decoders have beside experts and routers).
/// Unknown keys do not prevent an expansion, but then no verdict says that it is exact.
class FamilyFile {
 public:
  /// Throws   Error{kNotFound, kIo}; Error{kFormat} naming file and key: unknown keys and roles (with the nearest),
  ///          missing ones, names without the {L} and {X} that their role needs.
  static FamilyFile read(const std::filesystem::path& path);
  /// The same of the file's content; `source` names it in errors.
  static FamilyFile from_json(const Json& json, std::string_view source);
  FamilyFile(FamilyFile&&) noexcept;
  FamilyFile& operator=(FamilyFile&&) noexcept;
  ~FamilyFile();

  const Family& family() const;  ///< lives as long as this object

 private:
  struct State;
  explicit FamilyFile(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace coppice::families
