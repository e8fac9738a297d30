#include "coppice/methods/changes_nothing.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "coppice/base/rng.h"
#include "coppice/methods/expert_init.h"

namespace coppice::methods {
namespace {

using families::Role;

constexpr int64_t kThin = 16;

struct Sizes {
  int64_t width, model_dim;
};

/// Normal values scaled by 2^-40 to 1, and some zeros.
std::vector<float> probe_values(uint32_t expert, size_t count) {
  std::vector<float> values(count);
  Rng({.seed = expert, .purpose = 0}).fill_normal(0, values.data(), count);
  for (size_t i = 0; i < count; ++i) values[i] = i % 7 == 0 ? 0.0f : std::ldexp(values[i], -static_cast<int>(i % 41));
  return values;
}

matrix::MatrixRows probe(Role role, uint32_t expert, Sizes sizes) {
  const bool is_down = role == Role::kExpertDown;
  const int64_t rows = is_down ? sizes.model_dim : sizes.width;
  const int64_t cols = families::is_bias(role) ? 1 : is_down ? sizes.width : sizes.model_dim;
  auto read = [values = probe_values(expert, static_cast<size_t>(rows * cols)), cols](int64_t first,
                                                                                      std::span<float> out) {
    std::ranges::copy(std::span(values).subspan(static_cast<size_t>(first * cols), out.size()), out.begin());
  };
  return {role, rows, cols, std::move(read), "probe"};
}

}  // namespace

bool changes_nothing(const MethodChoice& expert_method, int64_t width, int64_t model_dim) {
  const ExpertInit& method = expert_init(expert_method.name);
  if (method.same_bytes) return true;
  const Params params(method.name, method.params, expert_method.given);
  std::vector<Role> roles{Role::kExpertGate, Role::kExpertUp, Role::kExpertDown};
  if (method.changes_biases) roles.push_back(Role::kExpertUpBias);
  const auto is_unchanged = [&](Role role, Sizes sizes) {
    const matrix::MatrixRows parent = probe(role, 0, sizes);
    matrix::MatrixRows child = parent;
    child.read =
        method.child(parent, {.num_experts = 4}, [&](uint32_t expert) { return probe(role, expert, sizes); }, params);
    return child.all() == parent.all();
  };
  return std::ranges::all_of(roles, [&](Role role) {
    return is_unchanged(role, {width, std::min(kThin, model_dim)}) &&
           is_unchanged(role, {std::min(kThin, width), model_dim});
  });
}

}  // namespace coppice::methods
