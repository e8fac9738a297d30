#include "coppice/kernels/adamw.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "coppice/kernels/adamw_detail.h"
#include "tests/guarded/devices.h"

namespace coppice::kernels {
namespace {

constexpr AdamwSettings kSettings{.lr = 3e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1};

struct State {
  at::Tensor master, exp_avg, exp_avg_sq;
};

AdamwPart part_of(const State& s, const at::Tensor& grad, const at::Tensor& value, int64_t step) {
  return {
      .master = s.master, .exp_avg = s.exp_avg, .exp_avg_sq = s.exp_avg_sq, .grad = grad, .value = value, .step = step};
}

State make_state(int64_t n) {
  at::manual_seed(1);
  return {at::randn({n}), at::zeros({n}), at::zeros({n})};
}

// The formula of torch.optim.AdamW in f64. f32 may differ by some roundings of the weight and of the update.
TEST(AdamwStep, FollowsTheFormulaOverSeveralSteps) {
  constexpr int64_t kCount = 1003;  // not a multiple of any vector
  auto s = make_state(kCount);
  std::vector<double> p(kCount), m(kCount), v(kCount);
  for (int64_t i = 0; i < kCount; ++i) p[i] = s.master.const_data_ptr<float>()[i];
  for (int64_t step = 1; step <= 5; ++step) {
    const auto grad = at::randn({kCount});
    const double scale = 0.25;
    adamw_step(std::array{part_of(s, grad, {}, step)}, scale, kSettings);
    const auto power = static_cast<double>(step);
    for (int64_t i = 0; i < kCount; ++i) {
      const double g = grad.const_data_ptr<float>()[i] * scale;
      p[i] -= kSettings.lr * kSettings.weight_decay * p[i];
      m[i] = kSettings.beta1 * m[i] + (1 - kSettings.beta1) * g;
      v[i] = kSettings.beta2 * v[i] + (1 - kSettings.beta2) * g * g;
      const double root = std::sqrt(v[i] / (1 - std::pow(kSettings.beta2, power)));
      p[i] -= kSettings.lr * m[i] / (1 - std::pow(kSettings.beta1, power)) / (root + kSettings.epsilon);
      ASSERT_NEAR(s.master.const_data_ptr<float>()[i], p[i], 1e-6) << "step " << step << " element " << i;
    }
  }
}

// With beta2 = 0.999 every change of the second moment is below half a step of bf16: rounding to nearest would keep it
// where it was.
TEST(AdamwStep, KeepsMomentsInBf16WithoutDrift) {
  constexpr int64_t kCount = 4096;
  const AdamwSettings settings{.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8, .weight_decay = 0};
  auto exact = make_state(kCount), rounded = make_state(kCount), again = make_state(kCount);
  for (State* s : {&rounded, &again}) {
    s->exp_avg = s->exp_avg.to(at::kBFloat16);
    s->exp_avg_sq = s->exp_avg_sq.to(at::kBFloat16);
  }
  for (int64_t step = 1; step <= 200; ++step) {
    const auto grad = at::randn({kCount}) * (step <= 100 ? 1.0 : 0.1);
    for (State* s : {&exact, &rounded, &again}) {
      adamw_step(std::array{part_of(*s, grad, {}, step)}, 1.0, settings);
    }
  }
  EXPECT_TRUE(at::equal(rounded.exp_avg_sq, again.exp_avg_sq)) << "the same draws every time";
  EXPECT_TRUE(at::equal(rounded.master, again.master));
  const double mean = exact.exp_avg_sq.mean().item<double>();
  EXPECT_NEAR(rounded.exp_avg_sq.to(at::kFloat).mean().item<double>(), mean, 2e-3 * mean);
  const auto moved = (exact.master - make_state(kCount).master).abs().mean().item<double>();
  EXPECT_LT((rounded.master - exact.master).abs().mean().item<double>(), 0.02 * moved);
}

TEST(AdamwStep, RoundsTheValueFromTheNewMaster) {
  auto s = make_state(777);
  const auto value = at::zeros({777}, at::kBFloat16);
  adamw_step(std::array{part_of(s, at::randn({777}), value, 1)}, 1.0, kSettings);
  EXPECT_TRUE(at::equal(value, s.master.to(at::kBFloat16)));
}

TEST(AdamwStep, CopiesTheMasterIntoAnF32ValueOfItsOwn) {
  auto s = make_state(40);
  const auto value = at::zeros({40});
  adamw_step(std::array{part_of(s, at::randn({40}), value, 1)}, 1.0, kSettings);
  EXPECT_TRUE(at::equal(value, s.master));
}

TEST(AdamwStep, WithoutGradientOnlyDecays) {
  auto s = make_state(64);
  const auto before = s.master.clone();
  adamw_step(std::array{part_of(s, at::zeros({64}), {}, 1)}, 1.0, kSettings);
  EXPECT_TRUE(at::equal(s.master, before * static_cast<float>(1 - kSettings.lr * kSettings.weight_decay)));
}

// What a GPU runs, on the CPU's tensors.
TEST(AdamwStep, OfLibtorchIsTheSameToRounding) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    auto ours = make_state(1003), theirs = make_state(1003);
    const auto our_value = at::zeros({1003}, at::kBFloat16), their_value = at::zeros({1003}, at::kBFloat16);
    for (int64_t step = 1; step <= 5; ++step) {
      const auto grad = at::randn({1003}).to(dtype);
      adamw_step(std::array{part_of(ours, grad, our_value, step)}, 0.25, kSettings);
      aten::adamw_step(std::array{part_of(theirs, grad, their_value, step)}, 0.25, kSettings);
    }
    EXPECT_TRUE(theirs.master.allclose(ours.master, 0, 1e-6));
    EXPECT_TRUE(theirs.exp_avg.allclose(ours.exp_avg, 1e-5, 1e-7));
    EXPECT_TRUE(theirs.exp_avg_sq.allclose(ours.exp_avg_sq, 1e-5, 1e-7));
    EXPECT_TRUE(at::equal(their_value, theirs.master.to(at::kBFloat16)));
  }
}

// The same draws as the CPU's: an f32 before rounding may differ by a rounding, and its bf16 then by a step, seldom.
TEST(AdamwStep, OfLibtorchRoundsMomentsInBf16AsTheCpuDoes) {
  constexpr int64_t kCount = 5003;
  auto ours = make_state(kCount), theirs = make_state(kCount);
  for (State* s : {&ours, &theirs}) {
    s->exp_avg = s->exp_avg.to(at::kBFloat16);
    s->exp_avg_sq = s->exp_avg_sq.to(at::kBFloat16);
  }
  for (int64_t step = 1; step <= 5; ++step) {
    const auto grad = at::randn({kCount});
    adamw_step(std::array{part_of(ours, grad, {}, step)}, 0.25, kSettings);
    aten::adamw_step(std::array{part_of(theirs, grad, {}, step)}, 0.25, kSettings);
    ASSERT_EQ(theirs.exp_avg.scalar_type(), at::kBFloat16);
    for (const auto& [found, wanted] :
         {std::pair(theirs.exp_avg, ours.exp_avg), std::pair(theirs.exp_avg_sq, ours.exp_avg_sq)}) {
      EXPECT_LT(found.ne(wanted).sum().item<int64_t>(), kCount / 200) << "step " << step;
      EXPECT_TRUE(found.to(at::kFloat).allclose(wanted.to(at::kFloat), 1.6e-2, 1e-6)) << "step " << step;
    }
    EXPECT_TRUE(theirs.master.allclose(ours.master, 0, 1e-4));
  }
}

TEST(AdamwStep, OnAGpuIsTheSameToRounding) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU, or a build without CUDA (preset `cuda`)";
  auto s = make_state(1003);
  const auto grad = at::randn({1003}), value = at::zeros({1003}, at::kBFloat16).cuda();
  const State there{s.master.cuda(), s.exp_avg.cuda(), s.exp_avg_sq.cuda()};
  adamw_step(std::array{part_of(there, grad.cuda(), value, 3)}, 0.5, kSettings);
  adamw_step(std::array{part_of(s, grad, {}, 3)}, 0.5, kSettings);
  EXPECT_TRUE(there.master.cpu().allclose(s.master, 0, 1e-6));
  EXPECT_TRUE(at::equal(value, there.master.to(at::kBFloat16)));
}

// Moments in bf16 too, which libtorch's fused operator does not take as they are.
TEST(AdamwStep, OnAnotherDeviceIsTheOneOfLibtorch) {
  for (const auto moments : {at::kFloat, at::kBFloat16}) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      const auto state = [&](at::Device device) {
        const auto s = make_state(1003);
        return State{s.master.to(device), s.exp_avg.to(device, moments), s.exp_avg_sq.to(device, moments)};
      };
      const State here = state(guarded::kCpu), there = state(guarded::kGuarded);
      const auto value = at::zeros({1003}, dtype), value_there = value.to(guarded::kGuarded);
      for (int64_t step = 1; step <= 3; ++step) {
        const auto grad = at::randn({1003}).to(dtype);
        aten::adamw_step(std::array{part_of(here, grad, value, step)}, 0.5, kSettings);
        adamw_step(std::array{part_of(there, grad.to(guarded::kGuarded), value_there, step)}, 0.5, kSettings);
      }
      EXPECT_TRUE(at::equal(there.master.to(at::kCPU), here.master));
      EXPECT_TRUE(at::equal(there.exp_avg.to(at::kCPU), here.exp_avg));
      EXPECT_TRUE(at::equal(there.exp_avg_sq.to(at::kCPU), here.exp_avg_sq));
      EXPECT_TRUE(at::equal(value_there.to(at::kCPU), value));
      EXPECT_TRUE(at::equal(value, here.master.to(dtype)));
    }
  }
}

// Ages, decay and dtypes of each part are its own; a cut of a parameter in several changes no bit, stochastic rounding
// included.
TEST(AdamwStep, OfManyPartsIsThatOfEachAlone) {
  struct Given {
    State state;
    at::Tensor grad, value;
    int64_t step;
    bool decays;
  };
  const auto given = [](at::Device device) {
    std::vector<Given> out;
    int64_t step = 0;
    for (const int64_t size : {1, 7, 40'000, 0, 16'384, 300}) {
      const auto moments = size == 40'000 ? at::kBFloat16 : at::kFloat;
      const State s = make_state(size);
      out.push_back({{s.master.to(device), s.exp_avg.to(device, moments), s.exp_avg_sq.to(device, moments)},
                     at::randn({size}).to(device, size == 7 ? at::kBFloat16 : at::kFloat),
                     size == 300 ? at::Tensor() : at::zeros({size}, at::kBFloat16).to(device),
                     ++step,
                     size != 300});
    }
    return out;
  };
  const auto parts_of = [](const std::vector<Given>& all, int64_t longest) {
    std::vector<AdamwPart> out;
    for (const Given& one : all) {
      for (int64_t begin = 0; begin == 0 || begin < one.grad.size(0); begin += longest) {
        const auto cut = [&](const at::Tensor& t) {
          return t.defined() ? t.narrow(0, begin, std::min(longest, t.size(0) - begin)) : t;
        };
        AdamwPart part = part_of({cut(one.state.master), cut(one.state.exp_avg), cut(one.state.exp_avg_sq)},
                                 cut(one.grad), cut(one.value), one.step);
        part.decays = one.decays;
        part.first_element = begin;
        out.push_back(part);
      }
    }
    return out;
  };
  for (const at::Device device : {guarded::kCpu, guarded::kGuarded}) {
    const auto together = given(device), alone = given(device), cut = given(device);
    adamw_step(parts_of(together, 1 << 20), 0.5, kSettings);
    adamw_step(parts_of(cut, 4096), 0.5, kSettings);  // a multiple of any vector
    for (const AdamwPart& part : parts_of(alone, 1 << 20)) adamw_step(std::array{part}, 0.5, kSettings);
    for (size_t i = 0; i < alone.size(); ++i) {
      const auto same = [&](const at::Tensor& wanted, const std::function<at::Tensor(const Given&)>& of) {
        return at::equal(wanted.cpu(), of(together[i]).cpu()) && at::equal(wanted.cpu(), of(cut[i]).cpu());
      };
      EXPECT_TRUE(same(alone[i].state.master, [](const Given& g) { return g.state.master; }))
          << device << " part " << i;
      EXPECT_TRUE(same(alone[i].state.exp_avg, [](const Given& g) { return g.state.exp_avg; }));
      EXPECT_TRUE(same(alone[i].state.exp_avg_sq, [](const Given& g) { return g.state.exp_avg_sq; }));
      EXPECT_TRUE(!alone[i].value.defined() || same(alone[i].value, [](const Given& g) { return g.value; }));
      const State start = make_state(alone[i].grad.size(0));
      EXPECT_TRUE(alone[i].grad.size(0) == 0 || !at::equal(alone[i].state.master.cpu(), start.master));
    }
  }
}

TEST(AdamwStep, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto grad = at::randn({100'000});
  std::vector<at::Tensor> results;
  const int before = at::get_num_threads();
  for (const int threads : {1, 2, 4}) {
    at::set_num_threads(threads);
    auto s = make_state(100'000);
    adamw_step(std::array{part_of(s, grad, {}, 1)}, 1.0, kSettings);
    results.push_back(s.master);
  }
  at::set_num_threads(before);
  EXPECT_TRUE(at::equal(results[0], results[1]));
  EXPECT_TRUE(at::equal(results[0], results[2]));
}

}  // namespace
}  // namespace coppice::kernels
