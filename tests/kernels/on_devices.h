#pragma once

// What tests of operators share: running one on a device, forward and backward, and comparing.

#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <vector>

#include "tests/guarded/devices.h"

namespace coppice::kernels::testing {

using Function = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

/// A gradient of fixed random values for an output.
inline at::Tensor output_gradient(const at::Tensor& y) {
  at::manual_seed(9);
  return at::randn(y.sizes()).to(y.scalar_type());
}

/// The output, then the gradient of each input for the output gradient above; computed on `device`, returned on
/// the CPU. `f` gets the inputs in their own dtypes.
inline std::vector<at::Tensor> run_on(at::Device device, const Function& f, const std::vector<at::Tensor>& inputs) {
  std::vector<at::Tensor> leaves;
  for (const auto& t : inputs) leaves.push_back(t.to(device).detach().clone().set_requires_grad(true));
  const auto y = f(leaves);
  EXPECT_EQ(y.device().type(), device.type());
  auto out = torch::autograd::grad({y}, leaves, {output_gradient(y).to(device)});
  for (size_t i = 0; i < out.size(); ++i) EXPECT_EQ(out[i].scalar_type(), inputs[i].scalar_type()) << i;
  out.insert(out.begin(), y.detach());
  for (auto& t : out) t = t.to(at::kCPU);
  return out;
}

inline std::vector<at::Tensor> in_dtype(std::vector<at::Tensor> tensors, at::ScalarType dtype) {
  for (auto& t : tensors) t = t.to(dtype);
  return tensors;
}

/// Each to `tolerance` of its largest number.
inline void expect_all_near(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& wanted,
                            double tolerance) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) {
    if (wanted[i].numel() == 0) continue;
    const auto error = (found[i].to(at::kDouble) - wanted[i].to(at::kDouble)).abs().max().item<double>();
    EXPECT_LE(error, tolerance * wanted[i].to(at::kDouble).abs().max().item<double>() + 1e-30) << "tensor " << i;
  }
}

inline void expect_all_equal(const std::vector<at::Tensor>& found, const std::vector<at::Tensor>& wanted) {
  ASSERT_EQ(found.size(), wanted.size());
  for (size_t i = 0; i < found.size(); ++i) EXPECT_TRUE(found[i].equal(wanted[i])) << "tensor " << i;
}

/// The same bits for any number of threads.
inline void expect_same_for_threads(const Function& f, const std::vector<at::Tensor>& inputs) {
  const auto wanted = run_on(guarded::kCpu, f, inputs);
  const int before = at::get_num_threads();
  for (const int threads : {1, 4}) {
    at::set_num_threads(threads);
    expect_all_equal(run_on(guarded::kCpu, f, inputs), wanted);
  }
  at::set_num_threads(before);
}

/// Holds the gradients of `f` in f64 to central differences of its output along a random direction of all inputs.
inline void expect_slopes(const Function& f, const std::vector<at::Tensor>& inputs) {
  const auto at_point = in_dtype(inputs, at::kDouble);
  const auto results = run_on(guarded::kCpu, f, at_point);
  const auto weight = output_gradient(results[0]);
  std::vector<at::Tensor> way;
  double slope = 0;
  for (size_t i = 0; i < inputs.size(); ++i) {
    way.push_back(at::randn(inputs[i].sizes(), at::kDouble));
    slope += (results[i + 1] * way[i]).sum().item<double>();
  }
  constexpr double kStep = 1e-5;
  const auto loss = [&](double step) {
    std::vector<at::Tensor> there;
    for (size_t i = 0; i < inputs.size(); ++i) there.push_back(at_point[i] + step * way[i]);
    return (f(there) * weight).sum().item<double>();
  };
  EXPECT_NEAR((loss(kStep) - loss(-kStep)) / (2 * kStep), slope, 1e-6 * std::abs(slope) + 1e-9);
}

/// The output and the gradients of the inputs from the two passes of a variant, called as they are.
using Passes = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&, const at::Tensor& grad)>;

/// An operator on every device against itself in f64 on the CPU, which libtorch's operators compute. `aten` are the
/// passes of their variant: on the guarded device the operator gives that one's bits.
inline void expect_same_everywhere(const Function& op, const Passes& aten, const std::vector<at::Tensor>& inputs,
                                   double f32_tolerance = 2e-6, double bf16_tolerance = 1.5e-2) {
  for (const auto& [dtype, tolerance] :
       {std::pair(at::kFloat, f32_tolerance), std::pair(at::kBFloat16, bf16_tolerance)}) {
    SCOPED_TRACE(c10::toString(dtype));
    const auto rounded = in_dtype(inputs, dtype);
    const auto wanted = run_on(guarded::kCpu, op, in_dtype(rounded, at::kDouble));
    const auto here = run_on(guarded::kCpu, op, rounded);
    const auto of_aten = aten(rounded, output_gradient(here[0]));
    expect_all_near(here, wanted, tolerance);
    expect_all_near(of_aten, wanted, tolerance);
    expect_all_equal(run_on(guarded::kGuarded, op, rounded), of_aten);
  }
}

}  // namespace coppice::kernels::testing
