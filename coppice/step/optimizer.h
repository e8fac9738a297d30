#pragma once

// AdamW over the parameters of a decoder: fp32 master weights and moments, and a step count for every part that may be
// of another age.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "coppice/kernels/adamw.h"
#include "coppice/nn/parameter.h"

namespace coppice::step {

/// AdamW's memory of one parameter.
struct ParameterState {
  at::Tensor exp_avg, exp_avg_sq;  ///< f32 or bf16, the parameter's shape
  at::Tensor grad;  ///< of this step: that of its one micro-batch as it came (f32 or bf16), or `sum`; undefined if none
  at::Tensor sum;   ///< f32, over several micro-batches
  std::vector<int64_t> steps;  ///< updates so far: one a parameter; of experts and routers one an expert, so that a
                               ///< grown expert has its own
};

/// Number of step counts a parameter has: its experts, or 1.
int64_t num_step_groups(const nn::Parameter& parameter);

/// The states lie beside the decoder's parameters: states()[i] belongs to parameters()[i], and every call takes those
/// same parameters.
///
/// Memory   moments 8 bytes a parameter, 4 in bf16; gradients as the backward pass made them, 4 bytes more for sums over several
///          micro-batches.
/// Threads  at::get_num_threads(); same bits for any number of them.
class Optimizer {
 public:
  /// Zero moments, zero steps.
  explicit Optimizer(const std::vector<nn::Parameter>& parameters);

  std::vector<ParameterState>& states() { return states_; }
  const std::vector<ParameterState>& states() const { return states_; }

  /// Keeps the moments in another dtype from now on. `dtype` f32 or bf16 (rounded to nearest).
  void set_moment_dtype(at::ScalarType dtype);
  at::ScalarType moment_dtype() const;

  /// Forgets the gradients summed so far.
  void clear();
  /// Takes the gradients that a backward pass left on the values; from the second time on adds them up in fp32.
  void accumulate(const std::vector<nn::Parameter>& parameters);
  /// Euclidean norm over all sums; fp64 in a fixed order.
  double grad_norm() const;
  /// Whether an update was broken off: some parameters are a step ahead of others.
  bool is_torn() const { return is_torn_; }
  /// One update from the sums, scaled so that their norm (`norm`, from grad_norm) is at most `clip` (0: any). Norms and
  /// biases do not decay.
  void step(std::vector<nn::Parameter>& parameters, const kernels::AdamwSettings& settings, double norm, double clip);

 private:
  std::vector<ParameterState> states_;
  bool is_torn_ = false;
};

}  // namespace coppice::step
