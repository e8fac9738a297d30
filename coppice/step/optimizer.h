#pragma once

// AdamW over the parameters of a decoder: fp32 master weights, moments, and a step count for every part that may have
// been added later.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "coppice/kernels/adamw.h"
#include "coppice/nn/parameter.h"

namespace coppice::step {

/// AdamW's state of one parameter.
struct ParameterState {
  at::Tensor exp_avg, exp_avg_sq;  ///< f32 or bf16, the parameter's shape
  /// This step's gradient: autograd's own tensor (f32 or bf16) with one micro-batch, an alias of `sum` with several,
  /// undefined without a gradient.
  at::Tensor grad;
  at::Tensor sum;  ///< f32, sum over several micro-batches
  /// Number of updates: one per parameter, but one per expert for experts and routers, so that a new expert has its
  /// own.
  std::vector<int64_t> steps;
};

/// The number of step counts of a parameter: its number of experts, or 1.
int64_t num_step_groups(const nn::Parameter& parameter);

/// The optimizer's states are parallel to the decoder's parameters: states()[i] belongs to parameters()[i], and every
/// call must pass the same parameters.
///
/// Memory   moments 8 bytes per parameter, 4 in bf16; gradients in the dtype of the backward pass, and 4 bytes more for
///          sums over several micro-batches.
/// Threads  at::get_num_threads(); same bits for any number of them.
class Optimizer {
 public:
  /// Zero moments, zero steps.
  explicit Optimizer(const std::vector<nn::Parameter>& parameters);

  std::vector<ParameterState>& states() { return states_; }
  const std::vector<ParameterState>& states() const { return states_; }

  /// Converts the moments to `dtype`, f32 or bf16 (rounded to nearest), and keeps them so.
  void set_moment_dtype(at::ScalarType dtype);
  at::ScalarType moment_dtype() const;

  /// Clears the summed gradients.
  void clear();
  /// Takes over the gradients of a backward pass; from the second call on, sums them in fp32.
  void accumulate(const std::vector<nn::Parameter>& parameters);
  /// Euclidean norm over all sums; fp64 in a fixed order, a scalar on their device.
  at::Tensor grad_norm() const;
  /// Whether an update was interrupted, so that some parameters are one step ahead of others.
  bool is_torn() const { return is_torn_; }
  /// One update from the sums, scaled so that their norm (`norm`, from grad_norm) is at most `clip` (0: any). Norms and
  /// biases do not decay.
  void step(std::vector<nn::Parameter>& parameters, const kernels::AdamwSettings& settings, double norm, double clip);

 private:
  std::vector<ParameterState> states_;
  bool is_torn_ = false;
};

}  // namespace coppice::step
