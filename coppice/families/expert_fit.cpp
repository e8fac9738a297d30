// Checks that a table alone cannot make: whether tensors that it copies unchanged belong to experts, and whether the
// matrices of an expert fit each other.

#include <algorithm>
#include <cctype>
#include <map>
#include <set>

#include "coppice/base/text.h"
#include "coppice/families/placements_detail.h"

namespace coppice::families::detail {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// Whether a part of the name refers to routed experts.
bool speaks_of_experts(std::string_view part) {
  return part.find("expert") != std::string_view::npos && part.find("shared") == std::string_view::npos;
}

/// "experts.3.up", "expert_3.up".
bool is_inside_an_expert(const std::vector<std::string>& parts) {
  for (size_t i = 0; i + 1 < parts.size(); ++i) {
    if (!speaks_of_experts(parts[i])) continue;
    if (is_digit(parts[i].back()) || (!parts[i + 1].empty() && std::ranges::all_of(parts[i + 1], is_digit)))
      return true;
  }
  return false;
}

/// "mlp.experts.bias", "mlp.expert_bias", "mlp.e_score_correction_bias", "mlp.router_scale".
bool is_named_for_experts(const std::vector<std::string>& parts) {
  return std::ranges::any_of(parts, [](std::string_view part) {
    return speaks_of_experts(part) || part.find("router") != std::string_view::npos ||
           part.find("score_correction") != std::string_view::npos;
  });
}

std::string_view module_of(std::string_view name) { return name.substr(0, name.rfind('.')); }

}  // namespace

Sides sides_of(const TensorSlot& slot, int64_t experts) {
  const Layout& layout = slot.rule->layout;
  std::vector<int64_t> shape = slot.shape;
  const size_t own = is_bias(slot.role()) ? 1 : 2;
  if (layout.stacked && shape.size() == own + 1) {
    shape.erase(shape.begin());
  } else if (layout.stacked && shape.size() == 2 && own == 2) {
    shape[0] /= experts;
  }
  if (shape.size() != own) return {};
  if (own == 2 && layout.transposed) std::swap(shape[0], shape[1]);
  const int64_t out = shape.front(), in = own == 2 ? shape.back() : 0;
  switch (slot.role()) {
    case Role::kExpertGate:
    case Role::kExpertUp:
    case Role::kExpertGateBias:
    case Role::kExpertUpBias: return {out, in};
    case Role::kExpertGateUp:
    case Role::kExpertGateUpBias: return {out / 2, in};
    case Role::kExpertDown:
    case Role::kExpertDownBias: return {in, out};
    default: return {};
  }
}

void check_carried(const ModelConfig& config, const std::vector<Placed>& placed, Faults& faults) {
  std::set<std::string, std::less<>> router_modules;
  for (const Placed& p : placed) {
    if (is_router(p.slot.role())) router_modules.emplace(module_of(p.slot.name));
  }
  for (const Placed& p : placed) {
    const Role role = p.slot.role();
    if (is_expert(role) || has_rows(role) || p.matched->name.empty()) continue;
    const std::string name(p.slot.name);
    const std::vector<std::string> parts = split(name, '.');
    const auto counts = [&](int64_t size) { return size == config.num_experts || size == config.router_rows(); };
    const bool counts_experts = std::ranges::any_of(p.slot.shape, counts);
    const bool is_layer_below =
        p.matched->name.find('*') == std::string_view::npos && (role == Role::kRouterTrunk || role == Role::kNorm);
    std::string_view why;
    if (is_inside_an_expert(parts)) {
      why = "is inside an expert";
    } else if (counts_experts && !is_layer_below && router_modules.contains(module_of(name))) {
      why = "has a dimension with the number of experts and is in a router's module";
    } else if (counts_experts && !is_layer_below && is_named_for_experts(parts)) {
      why = "has a dimension with the number of experts and its name refers to experts";
    }
    if (why.empty()) continue;
    faults.carried.add(cat(name, " ", shape_text(p.slot.shape), " ", why, " (rule '", p.matched->name, "', role ",
                           role_name(p.matched->role), ")"));
  }
}

void check_expert_shapes(const ModelConfig& config, const std::vector<Placed>& placed, Faults& faults) {
  struct First {
    const Placed *width = nullptr, *model = nullptr;
  };
  std::map<int64_t, First> layers;
  for (const Placed& p : placed) {
    if (!is_expert(p.slot.role()) || p.is_companion || p.slot.expert > 0) continue;
    if (!p.dtype || !io::is_float(*p.dtype)) continue;  // packed values have other dimensions
    First& first = layers[p.slot.layer];
    const Sides sides = sides_of(p.slot, config.num_experts);
    const auto compare = [&](int64_t size, const Placed*& other, int64_t Sides::* side, std::string_view what) {
      if (size == 0) return;
      if (other == nullptr) other = &p;
      const int64_t wanted = sides_of(other->slot, config.num_experts).*side;
      if (size == wanted) return;
      faults.unfit.add(cat(p.slot.name, " is ", shape_text(p.slot.shape), ", which gives ", role_name(p.slot.role()),
                           " ", what, " of ", size, "; wanted ", wanted, " as ", other->slot.name, " ",
                           shape_text(other->slot.shape), " (", role_name(other->slot.role()), ") has"));
    };
    compare(sides.width, first.width, &Sides::width, "a width");
    compare(sides.model, first.model, &Sides::model, "a model dimension");
  }
}

}  // namespace coppice::families::detail
