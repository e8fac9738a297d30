#include "coppice/score/spherical_k_means.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/mv.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "coppice/base/check.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/rng.h"
#include "coppice/kernels/embedding.h"
#include "coppice/nn/host.h"

namespace coppice::score {
namespace {

constexpr float kLeastLength = 1e-20f;

at::Tensor of_length_one(const at::Tensor& x_ND) {
  return x_ND / at::linalg_vector_norm(x_ND, 2, {1}, true).clamp_min(kLeastLength);
}

/// The index of a row chosen with probability proportional to its weight.
int64_t draw(const std::vector<float>& weight_T, double uniform) {
  std::vector<double> sum_T(weight_T.size());
  std::inclusive_scan(weight_T.begin(), weight_T.end(), sum_T.begin(), std::plus(), 0.0);
  const auto found = std::ranges::upper_bound(sum_T, uniform * sum_T.back());
  return std::min(found, sum_T.end() - 1) - sum_T.begin();
}

at::Tensor first_centres(const at::Tensor& unit_TD, const ClusterSettings& settings) {
  const Rng rng({.seed = settings.seed, .layer = static_cast<uint32_t>(settings.stream)});
  const auto centre_GD = at::empty({settings.clusters, unit_TD.size(1)}, unit_TD.options());
  int64_t row = static_cast<int64_t>(rng.below(0, static_cast<uint64_t>(unit_TD.size(0))));
  at::Tensor nearest_T;
  for (int64_t g = 0; g < settings.clusters; ++g) {
    check_interrupt();
    centre_GD[g].copy_(unit_TD[row]);
    const auto cosine_T = at::mv(unit_TD, centre_GD[g]);
    nearest_T = g == 0 ? cosine_T : at::maximum(nearest_T, cosine_T);
    if (g + 1 == settings.clusters) break;
    row = draw(nn::to_host<float>((1 - nearest_T).clamp_min(0)), rng.uniform(static_cast<uint64_t>(g) + 1));
  }
  return centre_GD;
}

/// Gives each empty cluster the row with the largest distance from its centre.
void fill_empty(std::vector<int64_t>& sizes, std::vector<int64_t>& index_T, std::vector<double> cosine_T) {
  for (size_t g = 0; g < sizes.size(); ++g) {
    if (sizes[g] > 0) continue;
    size_t farthest = index_T.size();
    for (size_t t = 0; t < index_T.size(); ++t) {
      const bool can_leave = sizes[static_cast<size_t>(index_T[t])] > 1;
      if (can_leave && (farthest == index_T.size() || cosine_T[t] < cosine_T[farthest])) farthest = t;
    }
    --sizes[static_cast<size_t>(index_T[farthest])];
    index_T[farthest] = static_cast<int64_t>(g);
    cosine_T[farthest] = 1;
    sizes[g] = 1;
  }
}

}  // namespace

Clusters spherical_k_means(const at::Tensor& x_TD, const ClusterSettings& settings) {
  COPPICE_CHECK(settings.clusters >= 1 && settings.clusters <= x_TD.size(0), settings.clusters, " of ", x_TD.size(0));
  const auto unit_TD = of_length_one(x_TD);
  Clusters out{.centre_GD = first_centres(unit_TD, settings), .sizes = {}};
  std::vector<int64_t> before_T;
  for (int64_t step = 0; step < settings.steps; ++step) {
    check_interrupt();
    const auto [cosine_T, nearest_T] = at::mm(unit_TD, out.centre_GD.t()).max(1);
    const at::Tensor there[] = {cosine_T.mean().to(at::kDouble), nearest_T, cosine_T.to(at::kDouble)};
    const auto here = nn::on_host_together(there);
    out.cosine = nn::number(here[0]);
    auto index_T = nn::to_host<int64_t>(here[1]);
    out.sizes.assign(static_cast<size_t>(settings.clusters), 0);
    for (const int64_t g : index_T) ++out.sizes[static_cast<size_t>(g)];
    fill_empty(out.sizes, index_T, nn::to_host<double>(here[2]));
    if (step + 1 == settings.steps || before_T == index_T) break;
    const auto chosen_T = nn::from_host<int64_t>(index_T, nearest_T.sizes(), unit_TD.device());
    out.centre_GD = of_length_one(kernels::sum_rows(unit_TD, chosen_T, settings.clusters));
    before_T = std::move(index_T);
  }
  return out;
}

}  // namespace coppice::score
