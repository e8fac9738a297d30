// The methods that decompose matrices: what they promise of angles and lengths, on Gaussian matrices.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "coppice/matrix/dense.h"
#include "coppice/methods/expert_init.h"
#include "tests/testing/growth_examples.h"

namespace coppice::methods {
namespace {

using families::Role;
using matrix::Dense;
using matrix::Svd;
using testing::normal_values;

constexpr ChildKey kKey{.seed = 11, .layer = 2, .parent = 3, .copy = 1, .num_experts = 8};

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double{a[i]} * b[i];
  return sum;
}
double norm(std::span<const float> a) { return std::sqrt(dot(a, a)); }
double cosine(std::span<const float> a, std::span<const float> b) { return dot(a, b) / norm(a) / norm(b); }

Dense gaussian(int64_t rows, int64_t cols, uint32_t seed = 1, float std = 0.02f) {
  return {rows, cols, normal_values(static_cast<size_t>(rows * cols), seed, std)};
}

Dense child_of(const Dense& parent, std::string_view name, const std::map<std::string, double>& given = {},
               ChildKey key = kKey) {
  const ExpertInit& method = expert_init(name);
  Dense child = parent;
  const auto partner = [&](uint32_t e) {
    EXPECT_TRUE(method.needs_partner);
    EXPECT_NE(e, key.parent);
    return gaussian(parent.rows, parent.cols, 500 + e).values;
  };
  testing::make_child(method, {Role::kExpertUp, parent.rows, parent.cols, child.values}, key, partner,
                      Params(name, method.params, given));
  return child;
}

/// Largest entry of |m'm - scale I|.
double distance_from_orthonormal(const Dense& m, double scale = 1) {
  double worst = 0;
  for (int64_t a = 0; a < m.cols; ++a) {
    for (int64_t b = 0; b <= a; ++b) {
      double sum = 0;
      for (int64_t r = 0; r < m.rows; ++r) sum += double{m.at(r, a)} * m.at(r, b);
      worst = std::max(worst, std::abs(sum - (a == b ? scale : 0)));
    }
  }
  return worst;
}

// -- decompositions -----------------------------------------------------------

TEST(OrthonormalColumns, SpanTheMatrixWithAPositiveDiagonal) {
  const Dense m = gaussian(30, 12, 1, 1.0f);
  const Dense q = matrix::orthonormal_columns(m);
  EXPECT_LT(distance_from_orthonormal(q), 1e-5);
  for (int64_t a = 0; a < 12; ++a) {
    for (int64_t b = 0; b <= a; ++b) {  // R = Q'M: upper triangular, diagonal positive
      double r = 0;
      for (int64_t i = 0; i < 30; ++i) r += double{q.at(i, a)} * m.at(i, b);
      if (a == b) {
        EXPECT_GT(r, 0);
      } else {
        EXPECT_NEAR(r, 0, 1e-5);
      }
    }
  }
}

TEST(OrthonormalColumns, AreThatOfNearlyDependentOnesToo) {
  for (const float apart : {0.0f, 1e-6f, 1e-3f}) {
    Dense m = gaussian(40, 12, 5, 1.0f);
    for (int64_t r = 0; r < m.rows; ++r) m.at(r, 3) = m.at(r, 2) + apart * m.at(r, 3);
    EXPECT_LT(distance_from_orthonormal(matrix::orthonormal_columns(m)), 1e-5) << apart;
  }
}

TEST(SingularValues, RebuildTheMatrixWithAFixedSign) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{40, 25}, {25, 40}, {1, 7}, {64, 64}}) {
    const Dense m = gaussian(rows, cols, 1, 1.0f);
    const Svd svd = matrix::singular_values(m);
    EXPECT_LT(distance_from_orthonormal(svd.u), 1e-5);
    EXPECT_LT(distance_from_orthonormal(svd.v), 1e-5);
    EXPECT_TRUE(std::ranges::is_sorted(svd.s, std::greater<>()));
    const Dense again = matrix::product(svd.u, svd.s, svd.v);
    for (size_t i = 0; i < m.values.size(); ++i) EXPECT_NEAR(again.values[i], m.values[i], 1e-5);
    for (int64_t c = 0; c < svd.u.cols; ++c) {
      float largest = 0;
      for (int64_t r = 0; r < rows; ++r) {
        if (std::abs(svd.u.at(r, c)) > std::abs(largest)) largest = svd.u.at(r, c);
      }
      EXPECT_GT(largest, 0);
    }
  }
}

// The minimum of |x - D c|^2 / 2 + t |c|_1 has a gradient of -t sign(c) where c is not 0, and within [-t, t] elsewhere.
TEST(SparseCodes, MeetTheConditionsOfTheirMinimum) {
  Dense dictionary = gaussian(30, 20, 4, 1.0f);
  for (int64_t a = 0; a < 20; ++a) {
    double length = 0;
    for (int64_t r = 0; r < 30; ++r) length += double{dictionary.at(r, a)} * dictionary.at(r, a);
    for (int64_t r = 0; r < 30; ++r) dictionary.at(r, a) /= static_cast<float>(std::sqrt(length));
  }
  const Dense x = gaussian(30, 6, 5, 1.0f);
  constexpr double kPenalty = 0.5;
  const Dense codes = matrix::sparse_codes(dictionary, x, kPenalty, 3000);
  int zeros = 0;
  for (int64_t c = 0; c < 6; ++c) {
    for (int64_t a = 0; a < 20; ++a) {
      double gradient = 0;
      for (int64_t r = 0; r < 30; ++r) {
        double rest = -x.at(r, c);
        for (int64_t b = 0; b < 20; ++b) rest += double{dictionary.at(r, b)} * codes.at(b, c);
        gradient += dictionary.at(r, a) * rest;
      }
      const float code = codes.at(a, c);
      if (code == 0) {
        ++zeros;
        EXPECT_LE(std::abs(gradient), kPenalty + 1e-3);
      } else {
        EXPECT_NEAR(gradient, code > 0 ? -kPenalty : kPenalty, 1e-3);
      }
    }
  }
  EXPECT_GT(zeros, 10);
}

TEST(SparseCodes, OfADictionaryOfZerosAreZero) {
  const Dense codes = matrix::sparse_codes({4, 3, std::vector<float>(12, 0.0f)}, gaussian(4, 2), 0.1, 10);
  EXPECT_THAT(codes.values, ::testing::Each(0.0f));
}

// -- orthogonal ---------------------------------------------------------------

TEST(ExpertOrthogonal, HasOrthogonalColumnsOrRowsAndTheParentsNorm) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{96, 64}, {64, 96}, {64, 64}}) {
    const Dense parent = gaussian(rows, cols);
    const Dense child = child_of(parent, "orthogonal");
    EXPECT_NEAR(norm(child.values) / norm(parent.values), 1, 1e-5);
    const double square = dot(parent.values, parent.values) / static_cast<double>(std::min(rows, cols));
    EXPECT_LT(distance_from_orthonormal(rows >= cols ? child : matrix::transposed(child), square), 1e-5 * square);
  }
}

TEST(ExpertOrthogonal, HasTheCosineOfItsShape) {
  EXPECT_NEAR(cosine(gaussian(256, 256).values, child_of(gaussian(256, 256), "orthogonal").values), 0.66, 0.02);
  EXPECT_NEAR(cosine(gaussian(256, 128).values, child_of(gaussian(256, 128), "orthogonal").values), 0.86, 0.02);
  EXPECT_NEAR(cosine(gaussian(128, 256).values, child_of(gaussian(128, 256), "orthogonal").values), 0.86, 0.02);
  EXPECT_NEAR(cosine(gaussian(96, 384).values, child_of(gaussian(96, 384), "orthogonal").values), 0.93, 0.02);
}

TEST(ExpertOrthogonal, OfAMatrixOfZerosIsZero) {
  const Dense zeros{6, 4, std::vector<float>(24, 0.0f)};
  EXPECT_EQ(child_of(zeros, "orthogonal").values, zeros.values);
}

// -- svd_perturb --------------------------------------------------------------

TEST(ExpertSvdPerturb, StaysNearItsParent) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{256, 128}, {128, 256}, {192, 192}}) {
    const Dense parent = gaussian(rows, cols), child = child_of(parent, "svd_perturb");
    EXPECT_GT(cosine(parent.values, child.values), 0.98);
    EXPECT_LT(cosine(parent.values, child.values), 0.998);
    EXPECT_GT(norm(child.values) / norm(parent.values), 0.97);
    EXPECT_LT(norm(child.values) / norm(parent.values), 1.06);
  }
}

TEST(ExpertSvdPerturb, MovesTheSingularValuesByATenthAlone) {
  const Dense parent = gaussian(128, 64);
  const Svd before = matrix::singular_values(parent);
  const Dense child = child_of(parent, "svd_perturb", {{"vectors", 0}});
  // With the vectors kept, u' W' v is the diagonal of new values.
  double sum = 0, squares = 0;
  for (int64_t k = 0; k < 64; ++k) {
    double value = 0;
    for (int64_t r = 0; r < 128; ++r) {
      double row = 0;
      for (int64_t c = 0; c < 64; ++c) row += double{child.at(r, c)} * before.v.at(c, k);
      value += before.u.at(r, k) * row;
    }
    const double change = value / before.s[static_cast<size_t>(k)] - 1;
    sum += change;
    squares += change * change;
  }
  EXPECT_NEAR(sum / 64, 0, 4 * 0.1 / 8);
  EXPECT_NEAR(std::sqrt(squares / 64), 0.1, 0.035);
}

TEST(ExpertSvdPerturb, RedrawsTheSmallestValuesIfAsked) {
  const Dense parent = gaussian(64, 40);
  const Svd before = matrix::singular_values(parent);
  const Svd after =
      matrix::singular_values(child_of(parent, "svd_perturb", {{"vectors", 0}, {"values", 0}, {"redraw", 0.25}}));
  for (size_t i = 0; i < 30; ++i) EXPECT_NEAR(after.s[i], before.s[i], 1e-4);
  for (size_t i = 30; i < 40; ++i) EXPECT_LT(after.s[i], 0.01 * 5 * before.s[0]);  // |xi| < 5
  EXPECT_GT(before.s[39], 0.05 * before.s[0]);
}

// -- svd_mix ------------------------------------------------------------------

TEST(ExpertSvdMix, KeepsSevenTenthsOfTheSingularPairs) {
  const Dense parent = gaussian(160, 64);
  const Dense child = child_of(parent, "svd_mix");
  const double c = cosine(parent.values, child.values);
  EXPECT_GT(c, 0.62);
  EXPECT_LT(c, 0.80);
  // The pairs that are the parent's still map v to s u; 19 of 64 do not.
  const Svd before = matrix::singular_values(parent);
  int kept = 0;
  for (int64_t k = 0; k < 64; ++k) {
    double value = 0;
    for (int64_t r = 0; r < 160; ++r) {
      double row = 0;
      for (int64_t i = 0; i < 64; ++i) row += double{child.at(r, i)} * before.v.at(i, k);
      value += before.u.at(r, k) * row;
    }
    kept += value > 0.6 * before.s[static_cast<size_t>(k)];
  }
  EXPECT_NEAR(kept, 64 - 19, 2);
  EXPECT_NEAR(cosine(parent.values, child_of(parent, "svd_mix", {{"ratio", 0}}).values), 1, 1e-5);
}

TEST(ExpertSvdMix, WithAllPairsMixedHasThePartnersVectors) {
  const Dense parent = gaussian(24, 16);
  const Dense child = child_of(parent, "svd_mix", {{"ratio", 1}});
  const Svd partner = matrix::singular_values(gaussian(24, 16, 500 + kKey.partner())),
            own = matrix::singular_values(parent);
  const Dense wanted = matrix::product(partner.u, own.s, partner.v);
  for (size_t i = 0; i < wanted.values.size(); ++i) EXPECT_NEAR(child.values[i], wanted.values[i], 1e-6);
}

// -- sparse_code_mix ----------------------------------------------------------

TEST(ExpertSparseCodeMix, StaysNearItsParent) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{128, 64}, {64, 128}}) {
    const Dense parent = gaussian(rows, cols), child = child_of(parent, "sparse_code_mix");
    EXPECT_GT(cosine(parent.values, child.values), 0.62);
    EXPECT_LT(cosine(parent.values, child.values), 0.87);
    EXPECT_GT(norm(child.values) / norm(parent.values), 1.0);
    EXPECT_LT(norm(child.values) / norm(parent.values), 1.2);
  }
  const Dense parent = gaussian(32, 16);
  EXPECT_EQ(child_of(parent, "sparse_code_mix", {{"ratio", 0}}).values, parent.values);
}

}  // namespace
}  // namespace coppice::methods
