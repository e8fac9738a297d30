#pragma once

// AdamW over the parameters of a decoder: fp32 master weights, moments, and a step count for every part that may have
// been added later.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "coppice/kernels/adamw.h"
#include "coppice/nn/division.h"
#include "coppice/nn/parameter.h"
#include "coppice/step/buckets.h"

namespace coppice::step {

class DividedState;

/// AdamW's state of one parameter.
struct ParameterState {
  at::Tensor exp_avg, exp_avg_sq;  ///< f32 or bf16, the shape of the parameter's master
  /// This step's gradient: autograd's own tensor (f32 or bf16) with one micro-batch, an alias of `sum` with several,
  /// undefined without a gradient.
  at::Tensor grad;
  at::Tensor sum;  ///< f32, sum over several micro-batches
  /// Number of updates: one per parameter, but one per expert (of this rank) for experts and one per row for routers, so
  /// that a new expert has its own.
  std::vector<int64_t> steps;
};

/// The number of step counts of a parameter: its number of experts, or 1.
int64_t num_step_groups(const nn::Parameter& parameter);

/// The optimizer's states are parallel to the decoder's parameters: states()[i] belongs to parameters()[i], and every
/// call must pass the same parameters.
///
/// On several ranks each keeps masters and moments of some elements of each parameter (ZeRO-1, divided_state.h), updates
/// these, and gets the values of the others from their ranks.
/// Memory   moments 8 bytes per element kept, 4 in bf16; gradients in the dtype of the backward pass, and 4 bytes more
///          for sums over several micro-batches. On several ranks as DividedState.
/// Ranks    all of the world make the same calls in the same order.
/// Threads  at::get_num_threads(); same bits for any number of them.
class Optimizer {
 public:
  /// Zero moments, zero steps, on one rank.
  explicit Optimizer(const std::vector<nn::Parameter>& parameters);
  /// On several ranks this moves the values, and cuts each master to the elements that this rank keeps.
  Optimizer(std::vector<nn::Parameter>& parameters, const nn::Division& division);

  /// After an expansion: `states` and masters are those of the elements that this rank keeps, flat on several ranks.
  Optimizer(std::vector<nn::Parameter>& parameters, const nn::Division& division, std::vector<ParameterState> states);

  std::vector<ParameterState>& states() { return states_; }
  const std::vector<ParameterState>& states() const { return states_; }
  /// The elements of parameter i, of those that this rank has, whose master and moments it keeps.
  Interval kept(const std::vector<nn::Parameter>& parameters, size_t i) const;
  /// Null on one rank.
  const DividedState* divided() const { return divided_.get(); }

  /// Converts the moments to `dtype`, f32 or bf16 (rounded to nearest), and keeps them so.
  void set_moment_dtype(at::ScalarType dtype);
  at::ScalarType moment_dtype() const;

  /// Clears the summed gradients.
  void clear();
  /// Before the last backward pass of a batch: while it runs, ranks sum the gradients that are complete.
  void begin_last_pass();
  /// Takes over the gradients of a backward pass; from the second call on, sums them in fp32.
  void accumulate(const std::vector<nn::Parameter>& parameters);
  /// After the last pass: the sums over ranks are complete.
  void finish_gradients();
  /// The squared Euclidean norm over all sums that this rank keeps; fp64 in a fixed order, a scalar on their device.
  at::Tensor sum_of_squares() const;
  /// Whether an update was interrupted, so that some parameters are one step ahead of others.
  bool is_torn() const { return is_torn_; }
  /// One update from the sums, scaled so that their norm (`norm`, over all ranks) is at most `clip` (0: any). Norms and
  /// biases do not decay. On several ranks the new values then are under way: see wait_for_values.
  void step(std::vector<nn::Parameter>& parameters, const kernels::AdamwSettings& settings, double norm, double clip);
  /// Waits for the values from other ranks that layers up to `layer` read (-1: the embedding).
  void wait_for_values(int64_t layer);
  /// Bytes that this rank will send of new values whose way has not begun.
  uint64_t bytes_to_gather() const;

 private:
  void set_to_zero(const std::vector<nn::Parameter>& parameters);

  std::vector<ParameterState> states_;
  std::shared_ptr<DividedState> divided_;
  bool is_torn_ = false;
};

}  // namespace coppice::step
