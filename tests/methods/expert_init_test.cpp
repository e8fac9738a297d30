#include "coppice/methods/expert_init.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "coppice/matrix/mean_std.h"
#include "tests/testing/errors.h"
#include "tests/testing/growth_examples.h"

namespace coppice::methods {
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

/// Expert `e` of the layer as a partner.
Expert other_expert(const Expert& parent, uint32_t e) {
  return Expert::random(parent.units, parent.dim, 1000 + 10 * e);
}

Params params_of(const ExpertInit& method, const std::map<std::string, double>& given = {}) {
  return {method.name, method.params, given};
}

Expert child_of(Expert parent, std::string_view name, const std::map<std::string, double>& given = {},
                ChildKey key = key_of()) {
  const ExpertInit& method = expert_init(name);
  for (const Role role : kRoles) {
    const auto partner = [&](uint32_t e) {
      EXPECT_TRUE(method.needs_partner);
      EXPECT_NE(e, key.parent);
      EXPECT_LT(e, key.num_experts);
      return other_expert(parent, e).matrix(role);
    };
    testing::make_child(method, parent.view(role), key, partner, params_of(method, given));
  }
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

double norm(const std::vector<float>& values) {
  double squares = 0;
  for (const float x : values) squares += double{x} * x;
  return std::sqrt(squares);
}

matrix::MeanStd stats(const std::vector<float>& values) { return matrix::mean_std(std::span<const float>(values)); }

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
  for (const ChildKey& key : {key_of(3, 2), other_seed, other_layer}) {
    EXPECT_EQ(child_of(parent, name, {}, key).down == child.down, !GetParam()->draws);
  }
  if (GetParam()->draws) {
    EXPECT_NE(child_of(parent, name, {}, key_of(4, 1)).down, child.down);
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
    SCOPED_TRACE(units);
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
  const bool stay = GetParam()->apply_moment == nullptr;
  for (const Role role : kRoles) {
    for (size_t i = 0; i < child.matrix(role).size(); ++i) {
      if (stay) {
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
  testing::make_child(method, {Role::kExpertUp, 50, 100, child}, key_of(), {}, params_of(method));
  const auto sigma = static_cast<float>(0.01 * stats(values).std);
  const Rng rng = key_of().tensor_rng(Role::kExpertUp, 1);
  for (size_t i = 0; i < values.size(); i += 7) {
    const float noise = sigma * rng.normal(i);
    EXPECT_EQ(child[i], values[i] + noise) << i;
  }
}

// -- drop_upcycle -------------------------------------------------------------

// 512 x 1024 of std 0.02: half the columns drawn with the variance 2/1536 (xavier) or 2/1024 (kaiming).
TEST(ExpertDropUpcycle, HasTheCosineAndNormOfItsInitialisation) {
  struct Wanted {
    double init, cosine, norm;
  };
  const auto parent = normal_values(512 * 1024, 3, 0.02f);
  const auto& method = expert_init("drop_upcycle");
  for (const Wanted& wanted : {Wanted{0, 0.34, 1.46}, {1, 0.29, 1.71}, {2, 0.50, 1.00}}) {
    auto child = parent;
    testing::make_child(method, {Role::kExpertUp, 512, 1024, child}, key_of(), {},
                        params_of(method, {{"init", wanted.init}}));
    EXPECT_NEAR(cosine(parent, child), wanted.cosine, 0.01);
    EXPECT_NEAR(norm(child) / norm(parent), wanted.norm, 0.015);
  }
}

TEST(ExpertDropUpcycle, RedrawsWholeColumnsOfEachMatrixApartWithinTheBound) {
  const auto parent = normal_values(40 * 30, 3, 10.0f);  // far outside the bound
  const auto& method = expert_init("drop_upcycle");
  std::set<std::vector<int64_t>> sets;
  for (const Role role : kRoles) {
    auto child = parent;
    testing::make_child(method, {role, 40, 30, child}, key_of(), {}, params_of(method, {{"ratio", 0.35}}));
    std::vector<int64_t> columns;
    for (int64_t c = 0; c < 30; ++c) {
      int changed = 0;
      for (int64_t r = 0; r < 40; ++r) {
        const auto i = static_cast<size_t>(r * 30 + c);
        if (child[i] == parent[i]) continue;
        ++changed;
        EXPECT_LT(std::abs(child[i]), std::sqrt(6.0 / 70));
      }
      EXPECT_TRUE(changed == 0 || changed == 40);
      if (changed > 0) columns.push_back(c);
    }
    EXPECT_EQ(columns.size(), 10u);
    sets.insert(columns);
  }
  EXPECT_EQ(sets.size(), 3u);  // drawn per tensor
}

TEST(ExpertDropUpcycle, TakesNoInitialisationBetweenTheThree) {
  testing::expect_error(ErrorCode::kUsage, {"init", "whole"},
                        [] { (void)params_of(expert_init("drop_upcycle"), {{"init", 0.5}}); });
}

// -- shuffle_columns ----------------------------------------------------------

TEST(ExpertShuffleColumns, MovesWholeColumnsOfEachMatrixApart) {
  Expert parent = Expert::random(3, 40, 8);
  Expert child = child_of(parent, "shuffle_columns");
  std::vector<std::vector<int64_t>> orders;
  for (const Role role : {Role::kExpertGate, Role::kExpertUp}) {
    std::vector<int64_t> order;
    for (int64_t c = 0; c < 40; ++c) {
      for (int64_t from = 0; from < 40; ++from) {
        if (child.at_unit(role, 0, c) == parent.at_unit(role, 0, from)) order.push_back(from);
      }
      ASSERT_EQ(order.size(), static_cast<size_t>(c + 1));
      for (int64_t r = 1; r < 3; ++r) EXPECT_EQ(child.at_unit(role, r, c), parent.at_unit(role, r, order.back()));
    }
    EXPECT_EQ(std::set(order.begin(), order.end()).size(), 40u);
    orders.push_back(order);
  }
  EXPECT_NE(orders[0], orders[1]);
}

// -- drop_units ---------------------------------------------------------------

std::vector<int64_t> changed_units(Expert& parent, Expert& child, Role role) {
  std::vector<int64_t> units;
  for (int64_t u = 0; u < parent.units; ++u) {
    int64_t changed = 0;
    for (int64_t i = 0; i < parent.dim; ++i) changed += parent.at_unit(role, u, i) != child.at_unit(role, u, i);
    EXPECT_TRUE(changed == 0 || changed == parent.dim) << "unit " << u << " is reinitialised in part";
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

// -- biases -------------------------------------------------------------------

// Unit u of gate has the bias 100 + u: where the methods move units they move biases, where they redraw them they do so
// too, and down's bias belongs to no unit.
TEST(ExpertBiases, GoWithTheirUnits) {
  for (const char* name : {"permute_units", "drop_units"}) {
    SCOPED_TRACE(name);
    const ExpertInit& method = expert_init(name);
    EXPECT_TRUE(method.changes_biases);
    Expert parent = Expert::random(64, 1, 8);
    for (int64_t u = 0; u < 64; ++u) parent.gate[static_cast<size_t>(u)] = static_cast<float>(100 + u);
    Expert child = child_of(parent, name);
    std::vector<float> bias = parent.gate, down_bias{1, 2, 3};
    testing::make_child(method, {Role::kExpertGateBias, 64, 1, bias}, key_of(), {}, params_of(method));
    testing::make_child(method, {Role::kExpertDownBias, 3, 1, down_bias}, key_of(), {}, params_of(method));
    for (size_t u = 0; u < 64; ++u) {
      EXPECT_EQ(bias[u] == parent.gate[u], child.gate[u] == parent.gate[u]) << "unit " << u;
      if (method.same_function) {
        EXPECT_EQ(bias[u], child.gate[u]);
      }
    }
    EXPECT_EQ(down_bias, (std::vector<float>{1, 2, 3}));
  }
}

TEST(ExpertBiases, AreScaledAndMixedWithTheWeights) {
  for (const ExpertInit& method : expert_inits()) {
    const bool wanted = method.name == "permute_units" || method.name == "drop_units" || method.name == "interpolate" ||
                        method.name == "scaled_copy";
    EXPECT_EQ(method.changes_biases, wanted) << method.name;
  }
}

// -- partners -----------------------------------------------------------------

TEST(ChildKeyPartner, IsEveryOtherExpertEquallyOftenAndNeverTheParent) {
  std::vector<int> counts(8, 0);
  constexpr int kChildren = 7000;
  for (uint32_t copy = 1; copy <= kChildren; ++copy) ++counts.at(key_of(3, copy).partner());
  for (uint32_t e = 0; e < 8; ++e) {
    if (e == 3) {
      EXPECT_EQ(counts[e], 0);
    } else {
      EXPECT_NEAR(counts[e], kChildren / 7, 5 * std::sqrt(kChildren / 7.0));
    }
  }
  EXPECT_EQ(key_of(7).next(), 0u);
  EXPECT_EQ(key_of(2).next(), 3u);
}

// -- interpolate, scaled_copy -------------------------------------------------

TEST(ExpertInterpolate, MixesWithTheNextExpertAroundTheEnd) {
  const Expert parent = Expert::random(6, 5, 1);
  for (const uint32_t from : {2u, 7u}) {
    const Expert next = other_expert(parent, (from + 1) % 8);
    const Expert half = child_of(parent, "interpolate", {}, key_of(from));
    const Expert quarter = child_of(parent, "interpolate", {{"alpha", 0.25}}, key_of(from));
    for (size_t i = 0; i < parent.gate.size(); ++i) {
      EXPECT_FLOAT_EQ(half.gate[i], 0.5f * parent.gate[i] + 0.5f * next.gate[i]);
      EXPECT_FLOAT_EQ(quarter.gate[i], 0.75f * parent.gate[i] + 0.25f * next.gate[i]);
    }
    EXPECT_EQ(child_of(parent, "interpolate", {{"alpha", 1}}, key_of(from)).down, next.down);
  }
}

TEST(ExpertScaledCopy, TimesItsFactor) {
  const Expert parent = Expert::random(6, 5, 1);
  const Expert child = child_of(parent, "scaled_copy");
  for (size_t i = 0; i < parent.up.size(); ++i) EXPECT_EQ(child.up[i], 0.95f * parent.up[i]);
}

TEST(ExpertInitByName, NamesTheNearest) {
  testing::expect_error(ErrorCode::kUsage, {"expert-init", "'drop_unit'", "'drop_units'"},
                        [] { (void)expert_init("drop_unit"); });
}

}  // namespace
}  // namespace coppice::methods
