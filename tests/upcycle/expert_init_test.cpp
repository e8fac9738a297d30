#include "coppice/upcycle/expert_init.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "coppice/upcycle/lane_sum_detail.h"
#include "tests/testing/errors.h"
#include "tests/upcycle/growth_examples.h"

namespace coppice::upcycle {
namespace {

using families::Role;
using testing::normal_values;

constexpr Role kRoles[] = {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown};

/// One expert with f units over d features.
struct Expert {
  int64_t units, dim;
  std::vector<float> gate, up, down;

  static Expert random(int64_t units, int64_t dim, uint32_t seed) {
    const auto size = static_cast<size_t>(units * dim);
    return {units, dim, normal_values(size, seed, 0.02f, 0.001f), normal_values(size, seed + 1, 0.03f),
            normal_values(size, seed + 2, 0.04f)};
  }
  std::vector<float>& matrix(Role role) {
    return role == Role::kExpertGate ? gate : role == Role::kExpertUp ? up : down;
  }
  ExpertView view(Role role) {
    const bool is_down = role == Role::kExpertDown;
    return {.role = role, .rows = is_down ? dim : units, .cols = is_down ? units : dim, .values = matrix(role)};
  }
  float at_unit(Role role, int64_t unit, int64_t feature) {
    const int64_t i = role == Role::kExpertDown ? feature * units + unit : unit * dim + feature;
    return matrix(role)[static_cast<size_t>(i)];
  }
  /// down (silu(gate x) * (up x)) in fp64.
  std::vector<double> output(const std::vector<double>& x) {
    std::vector<double> y(static_cast<size_t>(dim), 0.0);
    for (int64_t u = 0; u < units; ++u) {
      double g = 0, v = 0;
      for (int64_t i = 0; i < dim; ++i) {
        g += at_unit(Role::kExpertGate, u, i) * x[static_cast<size_t>(i)];
        v += at_unit(Role::kExpertUp, u, i) * x[static_cast<size_t>(i)];
      }
      const double h = g / (1 + std::exp(-g)) * v;
      for (int64_t i = 0; i < dim; ++i) y[static_cast<size_t>(i)] += at_unit(Role::kExpertDown, u, i) * h;
    }
    return y;
  }
};

ChildKey key_of(uint32_t parent = 3, uint32_t copy = 1) {
  return {.seed = 11, .layer = 2, .parent = parent, .copy = copy, .num_experts = 8};
}

const PartnerSource kNoPartner = [](uint32_t) -> std::vector<float> {
  ADD_FAILURE() << "the method asked for a partner";
  return {};
};

Params params_of(const ExpertInit& method, const std::map<std::string, double>& given = {}) {
  return {method.name, method.params, given};
}

Expert child_of(Expert parent, std::string_view name, const std::map<std::string, double>& given = {},
                ChildKey key = key_of()) {
  const ExpertInit& method = expert_init(name);
  for (const Role role : kRoles) method.apply(parent.view(role), key, kNoPartner, params_of(method, given));
  return parent;
}

double cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += double{a[i]} * b[i];
    aa += double{a[i]} * a[i];
    bb += double{b[i]} * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

MeanStd stats(const std::vector<float>& values) { return mean_std(std::span<const float>(values)); }

// -- what holds for every method ----------------------------------------------

class ExpertInits : public ::testing::TestWithParam<const ExpertInit*> {};
INSTANTIATE_TEST_SUITE_P(All, ExpertInits, ::testing::ValuesIn(testing::rows_of(expert_inits())), testing::RowName());

TEST_P(ExpertInits, GiveTheSameBitsTwiceAndOthersForAnyOtherKey) {
  const Expert parent = Expert::random(24, 20, 1);
  const auto name = GetParam()->name;
  const Expert child = child_of(parent, name);
  const Expert again = child_of(parent, name);
  EXPECT_EQ(child.gate, again.gate);
  EXPECT_EQ(child.up, again.up);
  EXPECT_EQ(child.down, again.down);
  auto other_seed = key_of(), other_layer = key_of();
  other_seed.seed = 12;
  other_layer.layer = 3;
  for (const ChildKey& key : {key_of(4, 1), key_of(3, 2), other_seed, other_layer}) {
    EXPECT_EQ(child_of(parent, name, {}, key).down == child.down, GetParam()->same_bytes);
  }
}

TEST_P(ExpertInits, KeepBytesAndFunctionWhereTheySaySo) {
  Expert parent = Expert::random(40, 24, 5);
  Expert child = child_of(parent, GetParam()->name);
  const bool same_bytes = child.gate == parent.gate && child.up == parent.up && child.down == parent.down;
  EXPECT_EQ(same_bytes, GetParam()->same_bytes);
  std::mt19937 bits(9);
  std::normal_distribution<double> normal;
  std::vector<double> x(24);
  for (double& v : x) v = normal(bits);
  const auto before = parent.output(x), after = child.output(x);
  double difference = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    difference = std::max(difference, std::abs(after[i] - before[i]));
    size = std::max(size, std::abs(before[i]));
  }
  if (GetParam()->same_function) {
    EXPECT_LT(difference, 1e-12 * size);  // fp64, other order of the sum over units
  } else {
    EXPECT_GT(difference, 1e-3 * size);
  }
}

TEST_P(ExpertInits, TakeExpertsOfOneUnitAndOneFeature) {
  for (const auto& [units, dim] : {std::pair<int64_t, int64_t>{1, 1}, {1, 17}, {17, 1}, {3, 2}}) {
    Expert child = child_of(Expert::random(units, dim, 1), GetParam()->name);
    for (const Role role : kRoles) {
      for (const float x : child.matrix(role)) EXPECT_TRUE(std::isfinite(x));
    }
  }
}

// Unit u of the child keeps (or takes from unit v) a mark of its unit that the moment carries; redrawn values have 0.
TEST_P(ExpertInits, MoveMomentsAsTheyMoveWeights) {
  const Expert parent = Expert::random(32, 6, 2);
  Expert child = child_of(parent, GetParam()->name);
  Expert moments = parent;
  for (const Role role : kRoles) {
    if (GetParam()->apply_moment) GetParam()->apply_moment(moments.view(role), key_of(), params_of(*GetParam()));
  }
  const bool adds_noise = GetParam()->name == "copy_noise";
  for (const Role role : kRoles) {
    for (size_t i = 0; i < child.matrix(role).size(); ++i) {
      if (adds_noise) {
        EXPECT_EQ(moments.matrix(role)[i], Expert(parent).matrix(role)[i]);
      } else if (moments.matrix(role)[i] != 0) {
        EXPECT_EQ(moments.matrix(role)[i], child.matrix(role)[i]);
      } else {
        EXPECT_NE(child.matrix(role)[i], Expert(parent).matrix(role)[i]);  // redrawn
      }
    }
  }
}

// -- copy_noise ---------------------------------------------------------------

TEST(ExpertCopyNoise, AddsGaussianNoiseScaledToTheMatrix) {
  Expert parent = Expert::random(300, 200, 3);
  Expert child = child_of(parent, "copy_noise", {{"lambda", 0.25}});
  for (const Role role : kRoles) {
    std::vector<float> noise = child.matrix(role);
    for (size_t i = 0; i < noise.size(); ++i) noise[i] -= parent.matrix(role)[i];
    const auto [mean, std] = stats(noise);
    const double wanted = 0.25 * stats(parent.matrix(role)).std;
    EXPECT_NEAR(std, wanted, 0.01 * wanted);  // 3.5 standard errors of 60,000 draws
    EXPECT_NEAR(mean, 0, 0.02 * wanted);
    EXPECT_LT(std::abs(cosine(noise, parent.matrix(role))), 0.02);
    double fourth = 0;
    for (const float x : noise) fourth += std::pow(x / std, 4);
    EXPECT_NEAR(fourth / static_cast<double>(noise.size()), 3.0,
                0.1);  // as a Gaussian has, and a uniform (1.8) has not
  }
}

TEST(ExpertCopyNoise, DrawsOwnNumbersForEachMatrix) {
  const Expert parent{4, 4, std::vector<float>(16), std::vector<float>(16), std::vector<float>(16)};
  Expert ramp = parent;
  for (auto* matrix : {&ramp.gate, &ramp.up, &ramp.down}) {
    for (size_t i = 0; i < 16; ++i) (*matrix)[i] = static_cast<float>(i);
  }
  const Expert child = child_of(ramp, "copy_noise", {{"lambda", 1}});
  EXPECT_NE(child.gate, child.up);
  EXPECT_NE(child.gate, child.down);
  EXPECT_EQ(child_of(parent, "copy_noise", {{"lambda", 1}}).gate, parent.gate);  // std 0
}

TEST(ExpertCopyNoise, ElementsAreNumberedInOutInOrder) {
  const auto values = normal_values(5000, 1);
  auto child = values;
  const auto& method = expert_init("copy_noise");
  method.apply({Role::kExpertUp, 50, 100, child}, key_of(), kNoPartner, params_of(method));
  const auto sigma = static_cast<float>(0.01 * stats(values).std);
  const Rng rng = key_of().tensor_rng(Role::kExpertUp, 1);
  for (size_t i = 0; i < values.size(); i += 7) {
    const float noise = sigma * rng.normal(i);
    EXPECT_EQ(child[i], values[i] + noise) << i;
  }
}

// -- drop_units ---------------------------------------------------------------

std::vector<int64_t> changed_units(Expert& parent, Expert& child, Role role) {
  std::vector<int64_t> units;
  for (int64_t u = 0; u < parent.units; ++u) {
    int64_t changed = 0;
    for (int64_t i = 0; i < parent.dim; ++i) changed += parent.at_unit(role, u, i) != child.at_unit(role, u, i);
    EXPECT_TRUE(changed == 0 || changed == parent.dim) << "unit " << u << " is redrawn in part";
    if (changed > 0) units.push_back(u);
  }
  return units;
}

TEST(ExpertDropUnits, RedrawsTheSameShareOfUnitsInAllThreeMatrices) {
  for (const double ratio : {0.0, 0.25, 0.5, 0.77, 1.0}) {
    Expert parent = Expert::random(50, 8, 4), child = child_of(parent, "drop_units", {{"ratio", ratio}});
    const auto units = changed_units(parent, child, Role::kExpertGate);
    EXPECT_EQ(units.size(), static_cast<size_t>(ratio * 50));
    EXPECT_EQ(changed_units(parent, child, Role::kExpertUp), units);
    EXPECT_EQ(changed_units(parent, child, Role::kExpertDown), units);
  }
}

TEST(ExpertDropUnits, ChoosesEveryUnitEquallyOften) {
  Expert parent = Expert::random(16, 1, 4);
  std::vector<int> dropped(16, 0);
  constexpr int kChildren = 2000;
  for (uint32_t copy = 1; copy <= kChildren; ++copy) {
    Expert child = child_of(parent, "drop_units", {{"ratio", 0.25}}, key_of(3, copy));
    for (const int64_t unit : changed_units(parent, child, Role::kExpertUp)) ++dropped[static_cast<size_t>(unit)];
  }
  for (const int count : dropped) EXPECT_NEAR(count, kChildren / 4, 5 * std::sqrt(kChildren * 0.25 * 0.75));
}

TEST(ExpertDropUnits, DrawsFromTheMeanAndStdOfWhatItReplaces) {
  Expert parent = Expert::random(200, 150, 6);
  // Units far off, so that statistics of the whole matrix would be wrong for the dropped half.
  for (int64_t u = 0; u < 200; u += 3) {
    for (int64_t i = 0; i < 150; ++i) parent.gate[static_cast<size_t>(u * 150 + i)] += 1.0f;
  }
  Expert child = child_of(parent, "drop_units");
  for (const Role role : kRoles) {
    std::vector<float> before, after;
    for (const int64_t unit : changed_units(parent, child, role)) {
      for (int64_t i = 0; i < 150; ++i) {
        before.push_back(parent.at_unit(role, unit, i));
        after.push_back(child.at_unit(role, unit, i));
      }
    }
    ASSERT_EQ(after.size(), 100u * 150u);
    const auto wanted = stats(before), found = stats(after);
    EXPECT_NEAR(found.mean, wanted.mean, 5 * wanted.std / std::sqrt(15000.0));
    EXPECT_NEAR(found.std, wanted.std, 5 * wanted.std / std::sqrt(2 * 15000.0));
  }
}

TEST(ExpertDropUnits, HasCosineOneHalfToItsParent) {
  Expert parent = Expert::random(512, 256, 7);
  Expert child = child_of(parent, "drop_units");
  for (const Role role : kRoles) EXPECT_NEAR(cosine(parent.matrix(role), child.matrix(role)), 0.5, 0.02);
}

// -- permute_units ------------------------------------------------------------

TEST(ExpertPermuteUnits, AppliesOnePermutationToAllThreeMatrices) {
  Expert parent = Expert::random(64, 3, 8);
  Expert child = child_of(parent, "permute_units");
  std::set<int64_t> used;
  int64_t moved = 0;
  for (int64_t u = 0; u < 64; ++u) {
    int64_t from = -1;
    for (int64_t v = 0; v < 64; ++v) {
      if (child.at_unit(Role::kExpertGate, u, 0) == parent.at_unit(Role::kExpertGate, v, 0)) from = v;
    }
    ASSERT_GE(from, 0);
    used.insert(from);
    moved += from != u;
    for (const Role role : kRoles) {
      for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(child.at_unit(role, u, i), parent.at_unit(role, from, i));
    }
  }
  EXPECT_EQ(used.size(), 64u);
  EXPECT_GT(moved, 50);
}

TEST(ExpertInitByName, NamesTheNearest) {
  testing::expect_error(ErrorCode::kUsage, {"expert-init", "'drop_unit'", "'drop_units'"},
                        [] { (void)expert_init("drop_unit"); });
}

}  // namespace
}  // namespace coppice::upcycle
