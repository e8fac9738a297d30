#include "coppice/convert/map.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/convert/config_detail.h"
#include "coppice/convert/families.h"

namespace coppice::convert {
namespace {

using families::ModelConfig;
using families::Role;
using families::TensorSlot;

/// The tensors of a model by role; for experts, the first expert's.
class Roles {
 public:
  explicit Roles(std::span<const TensorSlot> slots) {
    for (const TensorSlot& slot : slots) {
      if (slot.expert <= 0 && slot.role() != Role::kTiedCopy)
        by_role_.emplace(std::pair{slot.role(), slot.layer}, &slot);
    }
  }

  /// The tensor's name, empty if there is none; marks it as used.
  io::TensorName use(Role role, int64_t layer) {
    const auto found = by_role_.find({role, layer});
    if (found == by_role_.end()) return {};
    used_.insert(found->first);
    return found->second->name;
  }

  /// The tensors that were never used, as one clause per role.
  std::vector<std::string> unused(std::string_view reason) const {
    std::map<Role, std::vector<std::string>> names;
    for (const auto& [key, slot] : by_role_) {
      const bool is_empty = std::ranges::find(slot->shape, 0) != slot->shape.end();
      if (!is_empty && !used_.contains(key)) names[key.first].push_back(slot->name);
    }
    std::vector<std::string> clauses;
    for (const auto& [role, of_role] : names) clauses.push_back(clause(of_role, reason));
    return clauses;
  }

  static std::string clause(const std::vector<std::string>& names, std::string_view reason) {
    const std::string more = names.size() > 1 ? cat(" (and in ", names.size() - 1, " more layers)") : std::string();
    return cat("'", names.front(), "'", more, ": ", reason);
  }

 private:
  std::map<std::pair<Role, int64_t>, const TensorSlot*> by_role_;
  std::set<std::pair<Role, int64_t>> used_;
};

bool is_shared(Role role) {
  return role == Role::kSharedGate || role == Role::kSharedUp || role == Role::kSharedDown ||
         role == Role::kSharedExpertGate;
}

/// The initial value of a tensor that the dense model does not have, if one is defined.
std::optional<Origin> origin_of_new(Role role) {
  if (role == Role::kRouter) return Origin::kRouter;
  if (role == Role::kSelectionBias || role == Role::kSharedDown || role == Role::kSharedExpertGate)
    return Origin::kZeros;
  if (families::is_bias(role)) return Origin::kZeros;
  if (role == Role::kQueryNorm || role == Role::kKeyNorm) return Origin::kOnes;
  return std::nullopt;
}

/// Maps a tensor that both models have, or that only the new one has, except experts.
MappedTensor mapped(const TensorSlot& slot, Roles& roles, std::map<Role, std::vector<std::string>>& invented) {
  MappedTensor out{.slot = slot, .origin = Origin::kCopy, .source = roles.use(slot.role(), slot.layer)};
  if (!out.source.empty()) return out;
  const auto origin = origin_of_new(slot.role());
  COPPICE_CHECK(origin, slot.name);
  out.origin = *origin;
  if (*origin == Origin::kOnes) invented[slot.role()].push_back(slot.name);
  return out;
}

void add_invented(const std::map<Role, std::vector<std::string>>& invented, std::string_view model_type,
                  std::vector<std::string>& losses) {
  for (const auto& [role, names] : invented) {
    losses.push_back(
        Roles::clause(names, cat(model_type, " normalises queries and keys, but the model before does not")));
  }
}

ModelConfig read_new_config(const Json& json, const families::Family& family) {
  return families::read_config(json, "config.json of the converted model", &family);
}

}  // namespace

Role dense_role(Role expert) {
  switch (expert) {
    case Role::kExpertGate:
    case Role::kExpertGateUp:
    case Role::kSharedGate: return Role::kDenseGate;
    case Role::kExpertUp:
    case Role::kSharedUp: return Role::kDenseUp;
    case Role::kExpertDown:
    case Role::kSharedDown: return Role::kDenseDown;
    default: COPPICE_CHECK(false, families::role_name(expert));
  }
}

Mapping map_to_moe(const ModelConfig& dense, std::span<const TensorSlot> slots, const ConversionPlan& plan) {
  Mapping out;
  const families::Family& family = families::family_of(plan.to);
  out.config = read_new_config(detail::moe_config(dense, plan, out.losses), family);

  const bool centred = has_centred_norms(*dense.family);
  Roles roles(slots);
  std::map<Role, std::vector<std::string>> invented;
  for (const TensorSlot& slot : families::expected_tensors(out.config)) {
    const Role role = slot.role();
    if (families::is_expert(role) || (is_shared(role) && role != Role::kSharedExpertGate)) {
      const bool zero = role == Role::kSharedDown;
      const Origin origin = families::is_expert(role) ? Origin::kExperts : zero ? Origin::kZeros : Origin::kShared;
      const io::TensorName source = roles.use(dense_role(role), slot.layer);
      if (role == Role::kExpertGateUp) (void)roles.use(Role::kDenseUp, slot.layer);
      out.tensors.push_back({slot, origin, zero ? io::TensorName() : source});
      continue;
    }
    if (role == Role::kLmHead && dense.tied) {  // the head keeps the unscaled values of the embeddings
      out.tensors.push_back({slot, Origin::kCopy, roles.use(Role::kEmbedding, -1)});
      continue;
    }
    MappedTensor& tensor = out.tensors.emplace_back(mapped(slot, roles, invented));
    if (role == Role::kEmbedding && detail::folds_embedding_scale(dense, family)) tensor.origin = Origin::kEmbeddings;
    if (families::is_norm(role) && centred && tensor.origin == Origin::kCopy) tensor.origin = Origin::kPlusOne;
  }
  for (std::string& loss : roles.unused(cat(plan.to, " has no such tensor"))) out.losses.push_back(std::move(loss));
  add_invented(invented, plan.to, out.losses);
  return out;
}

Mapping map_to_dense(const ModelConfig& moe, std::span<const TensorSlot> slots, std::string_view to) {
  (void)family_to_average(moe.family->model_type, to);
  const families::Family& family = families::family_of(to);
  if (moe.num_moe_layers() < moe.num_layers && moe.dense_width != moe.expert_width) {
    throw Error(ErrorCode::kUnsupported, cat("dense-average: dense layers have width ", moe.dense_width,
                                             " and experts ", moe.expert_width, "; wanted equal widths"));
  }
  Mapping out;
  out.config = read_new_config(detail::dense_config(moe, family, out.losses), family);

  Roles roles(slots);
  std::map<Role, std::vector<std::string>> invented;
  for (const TensorSlot& slot : families::expected_tensors(out.config)) {
    const Role role = slot.role();
    const bool is_ffn = role == Role::kDenseGate || role == Role::kDenseUp || role == Role::kDenseDown;
    if (!is_ffn || !moe.moe_layer[static_cast<size_t>(slot.layer)]) {
      out.tensors.push_back(mapped(slot, roles, invented));
      continue;
    }
    const Role of_expert = role == Role::kDenseGate ? Role::kExpertGate
                           : role == Role::kDenseUp ? Role::kExpertUp
                                                    : Role::kExpertDown;
    io::TensorName source = roles.use(of_expert, slot.layer);
    if (source.empty()) source = roles.use(Role::kExpertGateUp, slot.layer);
    out.tensors.push_back({slot, Origin::kExpertMean, source});
  }
  for (int64_t layer = 0; layer < moe.num_layers; ++layer) {  // a dense model has no routers
    for (const Role role : {Role::kRouter, Role::kSelectionBias}) (void)roles.use(role, layer);
    if (moe.shared_width == 0) (void)roles.use(Role::kSharedExpertGate, layer);  // a gate without a shared expert
  }
  for (std::string& loss : roles.unused(cat(to, " has no such tensor"))) out.losses.push_back(std::move(loss));
  add_invented(invented, to, out.losses);
  return out;
}

}  // namespace coppice::convert
