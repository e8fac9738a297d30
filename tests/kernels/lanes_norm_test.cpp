// RMSNorm in lanes is compiled for two kinds of processor, beside loops for other dtypes and widths: all give the same bits.
#include <ATen/ops/empty_like.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "coppice/base/lane_sum.h"
#include "coppice/kernels/cpu/lanes_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kRows = 9;
constexpr double kEpsilon = 1e-5;

TEST(LanesNorm, HasTheBitsOfPlainLoopsOnAllProcessors) {
  at::manual_seed(3);
  for (const int64_t n : {16, 64, 176}) {
    const auto x = at::randn({kRows, n}), grad = at::randn({kRows, n}), weight = at::randn({n});
    auto out = at::empty_like(x), scale = at::full({kRows}, 0.0f), grad_x = at::empty_like(x),
         grad_w = at::full({n}, 0.0f);
    auto *const y = out.mutable_data_ptr<float>(), *const s = scale.mutable_data_ptr<float>();
    auto *const dx = grad_x.mutable_data_ptr<float>(), *const dw = grad_w.mutable_data_ptr<float>();
    const auto* const w = weight.const_data_ptr<float>();
    for (int64_t r = 0; r < kRows; ++r) {
      const auto *const from = x.const_data_ptr<float>() + r * n, *const d = grad.const_data_ptr<float>() + r * n;
      const float squares = lane_sum<float>(n, [&](int64_t i) { return from[i] * from[i]; });
      s[r] = static_cast<float>(1.0 / std::sqrt(squares / static_cast<double>(n) + kEpsilon));
      const float dot = lane_sum<float>(n, [&](int64_t i) { return d[i] * w[i] * from[i]; });
      const float pull = dot * s[r] * s[r] / static_cast<float>(n);
      for (int64_t i = 0; i < n; ++i) {
        y[r * n + i] = from[i] * s[r] * w[i];
        dx[r * n + i] = s[r] * (d[i] * w[i] - from[i] * pull);
        dw[i] += d[i] * from[i] * s[r];
      }
    }
    std::vector<const Lanes*> all{&kLanesOfAvx2};
    if (this_processor().avx512) all.push_back(&kLanesOfAvx512);
    for (const Lanes* const lanes : all) {
      const NormRows rows{x.const_data_ptr<float>(), kRows, n};
      auto y2 = at::empty_like(x), scale2 = at::empty_like(scale), dx2 = at::empty_like(x), dw2 = at::full({n}, 0.0f);
      lanes->normalise(rows, w, kEpsilon, y2.mutable_data_ptr<float>(), scale2.mutable_data_ptr<float>());
      lanes->normalise_backward(rows, w, s, grad.const_data_ptr<float>(), dx2.mutable_data_ptr<float>(),
                                dw2.mutable_data_ptr<float>());
      EXPECT_TRUE(at::equal(y2, out));
      EXPECT_TRUE(at::equal(scale2, scale));
      EXPECT_TRUE(at::equal(dx2, grad_x));
      EXPECT_TRUE(at::equal(dw2, grad_w));
    }
  }
}

}  // namespace
}  // namespace coppice::kernels::cpu
