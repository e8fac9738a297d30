#include <algorithm>
#include <cmath>

#include "coppice/methods/expert_decompose_detail.h"
#include "coppice/methods/expert_rows_detail.h"
#include "coppice/methods/purpose.h"

namespace coppice::methods {
namespace {

using matrix::Dense;
using matrix::Svd;

constexpr float kSmallestValue = 1e-8f;
constexpr float kRedrawnSize = 0.01f;  // relative to the largest singular value

/// The columns of `vectors` plus noise of this norm, made orthonormal again.
Dense shaken(Dense vectors, double length, const Rng& rng) {
  const auto sigma = static_cast<float>(length / std::sqrt(static_cast<double>(vectors.rows)));
  std::vector<float> noise(vectors.values.size());
  rng.fill_normal(0, noise.data(), noise.size());
  for (size_t i = 0; i < noise.size(); ++i) vectors.values[i] += sigma * noise[i];
  return matrix::orthonormal_columns(vectors);
}

// -- svd_perturb --------------------------------------------------------------

matrix::RowFill svd_perturb(const matrix::MatrixRows& parent, const ChildKey& key, const matrix::RowsSource&,
                            const Params& params) {
  const auto stream = [&](uint32_t purpose) { return key.tensor_rng(parent.role, purpose); };
  return rows_of(
      svd_perturbed(whole(parent), params,
                    {stream(kSingularValues), stream(kLeftVectors), stream(kRightVectors), stream(kSmallValues)}));
}

// -- svd_mix ------------------------------------------------------------------

constexpr ParamSpec kSvdMixParams[] = {
    {.key = "ratio",
     .fallback = 0.3,
     .lo = 0.0,
     .hi = 1.0,
     .help = "share of the singular pairs whose vectors come from the other expert"}};

matrix::RowFill svd_mix(const matrix::MatrixRows& parent, const ChildKey& key, const matrix::RowsSource& partner,
                        const Params& params) {
  Svd own = matrix::singular_values(whole(parent));
  const Svd from = matrix::singular_values(whole(partner(key.partner())));
  auto mixed = key.tensor_rng(parent.role, kMixed).permutation(static_cast<uint32_t>(own.s.size()));
  mixed.resize(static_cast<size_t>(std::floor(params.get("ratio") * static_cast<double>(mixed.size()))));
  for (const uint32_t pair : mixed) {
    for (int64_t r = 0; r < own.u.rows; ++r) own.u.at(r, pair) = from.u.at(r, pair);
    for (int64_t r = 0; r < own.v.rows; ++r) own.v.at(r, pair) = from.v.at(r, pair);
  }
  return rows_of(matrix::product(own.u, own.s, own.v));
}

}  // namespace

Dense svd_perturbed(const Dense& m, const Params& params, const SvdStreams& streams) {
  Svd svd = matrix::singular_values(m);
  const size_t count = svd.s.size();
  std::vector<float> noise(count);
  streams.values.fill_normal(0, noise.data(), count);
  const auto relative = static_cast<float>(params.get("values"));
  const float largest = svd.s.front();
  for (size_t i = 0; i < count; ++i) svd.s[i] = std::max(svd.s[i] * (1.0f + relative * noise[i]), kSmallestValue);
  const auto redrawn = static_cast<size_t>(std::floor(params.get("redraw") * static_cast<double>(count)));
  for (size_t i = count - redrawn; i < count; ++i) {
    svd.s[i] = kRedrawnSize * largest * std::abs(streams.small.normal(i));
  }
  const double length = params.get("vectors");
  return matrix::product(shaken(std::move(svd.u), length, streams.left), svd.s,
                         shaken(std::move(svd.v), length, streams.right));
}

extern constinit const ExpertInit kSvdPerturb{.name = "svd_perturb",
                                              .child = svd_perturb,
                                              .apply_moment = nullptr,
                                              .params = kSvdPerturbParams,
                                              .same_bytes = false,
                                              .same_function = false,
                                              .holds_matrix = true,
                                              .summary = "noise on the singular values and vectors of each matrix",
                                              .source = kExpertUpcycling};

extern constinit const ExpertInit kSvdMix{.name = "svd_mix",
                                          .child = svd_mix,
                                          .apply_moment = nullptr,
                                          .params = kSvdMixParams,
                                          .same_bytes = false,
                                          .same_function = false,
                                          .needs_partner = true,
                                          .holds_matrix = true,
                                          .summary = "some singular vectors taken from another expert",
                                          .source = kExpertUpcycling};

}  // namespace coppice::methods
