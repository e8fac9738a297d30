// The MoE layer by libtorch's operators: rows sorted by expert, and a loop over experts, so that neither gathered inputs
// nor activations of more than one expert exist at a time. R rows of one expert.

#include <ATen/ops/addmm.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>

#include <limits>
#include <tuple>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/kernels/activation_detail.h"
#include "coppice/kernels/aten/widened_detail.h"
#include "coppice/kernels/moe_detail.h"
#include "coppice/kernels/routing_detail.h"

namespace coppice::kernels::aten {
namespace {

using detail::MoeForward;
using detail::MoeGradients;
using detail::MoeInputs;

/// The pairs as rows: expert by expert, in rising order of pairs for each.
struct SortedPairs {
  at::Tensor pair_P, row_TK;  ///< int32
  at::Tensor rows_E;          ///< int64, of each expert, on the host
  at::Tensor token_P;

  /// Sorts; the host waits for the device.
  explicit SortedPairs(const MoeInputs& in) {
    const auto index = in.index_TK.flatten();
    COPPICE_CHECK(index.numel() <= std::numeric_limits<int32_t>::max());
    pair_P = std::get<1>(at::sort(index, /*stable=*/true, /*dim=*/0, /*descending=*/false));
    row_TK = at::empty_like(pair_P).scatter_(0, pair_P, at::arange(pair_P.numel(), pair_P.options()));
    row_TK = row_TK.view(in.index_TK.sizes()).to(at::kInt);
    pair_P = pair_P.to(at::kInt);
    rows_E = expert_counts(index, in.w_down_EDF.size(0)).to(at::kCPU);
    token_P = pair_P.floor_divide(in.index_TK.size(1));
  }
  /// The order of the forward pass again.
  SortedPairs(const MoeInputs& in, const std::vector<at::Tensor>& kept)
      : pair_P(kept.at(0)), row_TK(kept.at(1)), rows_E(kept.at(2)), token_P(pair_P.floor_divide(in.index_TK.size(1))) {}

  /// Calls f(expert, first row, number of rows) for every expert that has rows.
  template <class F>
  void each(const F& f) const {
    const auto* const rows = rows_E.const_data_ptr<int64_t>();
    int64_t first = 0;
    for (int64_t e = 0; e < rows_E.numel(); first += rows[e++]) {
      if (rows[e] > 0) f(e, first, rows[e]);
    }
  }

  /// out_t = sum over k of weight_tk * row_tk in the order of k; weights of 1 if `weight_TK` is undefined.
  at::Tensor combine(const at::Tensor& rows_PD, const at::Tensor& weight_TK) const {
    auto sum_TD = at::zeros({row_TK.size(0), rows_PD.size(1)}, rows_PD.options().dtype(wide(rows_PD.scalar_type())));
    for (int64_t k = 0; k < row_TK.size(1); ++k) {
      const auto of_slot_TD = widened(rows_PD.index_select(0, row_TK.select(1, k)));
      if (weight_TK.defined()) {
        sum_TD.addcmul_(of_slot_TD, weight_TK.narrow(1, k, 1));
      } else {
        sum_TD.add_(of_slot_TD);
      }
    }
    return sum_TD.to(rows_PD.scalar_type());
  }

  /// The value of each row to the place of its pair.
  at::Tensor of_pairs(const at::Tensor& value_P) const {
    return value_P.index_select(0, row_TK.flatten()).view(row_TK.sizes());
  }
};

struct Activated {
  at::Tensor value, by_gate, by_up;
};

/// As the types of the same names in activation_detail.h; derivatives only `with_slopes`.
Activated activate(const at::Tensor& hidden_RG, ExpertActivation activation, bool with_slopes) {
  const auto halves = widened(hidden_RG).chunk(2, 1);
  const auto &g = halves[0], &u = halves[1];
  if (activation == ExpertActivation::kSwiglu) {
    const auto s = at::sigmoid(g), silu = g * s;
    return {silu * u, with_slopes ? u * s * (1 + g * (1 - s)) : at::Tensor(), silu};
  }
  constexpr double kLimit = detail::kSwigluLimit, kSlope = detail::kSwigluSlope;
  const auto held = at::clamp_max(g, kLimit), up = at::clamp(u, -kLimit, kLimit) + 1;
  const auto s = at::sigmoid(held * kSlope), glu = held * s;
  if (!with_slopes) return {glu * up, {}, {}};
  return {glu * up, (up * s * (1 + held * kSlope * (1 - s))).masked_fill(g > kLimit, 0),
          glu.masked_fill(u.abs() > kLimit, 0)};
}

/// out = x weight' + bias, if there is one.
void linear_into(at::Tensor out, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias_E,
                 int64_t expert) {
  if (bias_E.defined()) {
    at::addmm_out(out, bias_E.select(0, expert), x, weight.t());
  } else {
    at::mm_out(out, x, weight.t());
  }
}

MoeForward forward(const MoeInputs& in) {
  const int64_t pairs = in.index_TK.numel(), dim = in.x_TD.size(1), width = in.w_down_EDF.size(2);
  const auto options = in.x_TD.options();
  const SortedPairs sorted(in);
  MoeForward out{{}, at::empty({pairs, 2 * width}, options), {}};
  const auto out_PD = at::empty({pairs, dim}, options);
  sorted.each([&](int64_t e, int64_t first, int64_t rows) {
    const auto hidden_RG = out.hidden_PG.narrow(0, first, rows);
    linear_into(hidden_RG, in.x_TD.index_select(0, sorted.token_P.narrow(0, first, rows)),
                in.w_gate_up_EGD.select(0, e), in.form.gate_up_bias_EG, e);
    const auto active_RF = activate(hidden_RG, in.form.activation, false).value.to(options.dtype());
    linear_into(out_PD.narrow(0, first, rows), active_RF, in.w_down_EDF.select(0, e), in.form.down_bias_ED, e);
  });
  out.y_TD = sorted.combine(out_PD, in.gate_TK);
  if (in.with_pair_sq) out.pair_sq_TK = sorted.of_pairs(widened(out_PD).square().sum(1));
  out.order = {sorted.pair_P, sorted.row_TK, sorted.rows_E};
  return out;
}

MoeGradients backward(const MoeInputs& in, const MoeForward& kept, const at::Tensor& grad_TD) {
  const auto dtype = in.x_TD.scalar_type();
  const SortedPairs sorted(in, kept.order);
  const auto zeros_like = [](const at::Tensor& t) {
    return t.defined() ? at::zeros(t.sizes(), t.options()) : at::Tensor();
  };
  MoeGradients out{{}, zeros_like(in.w_gate_up_EGD),        zeros_like(in.w_down_EDF),
                   {}, zeros_like(in.form.gate_up_bias_EG), zeros_like(in.form.down_bias_ED)};
  const auto gate_P = in.gate_TK.flatten().index_select(0, sorted.pair_P), grad_gate_P = at::empty_like(gate_P);
  const auto grad_in_PD = at::empty({gate_P.numel(), in.x_TD.size(1)}, in.x_TD.options());
  sorted.each([&](int64_t e, int64_t first, int64_t rows) {
    const auto part = [&](const at::Tensor& t) { return t.narrow(0, first, rows); };
    const auto w_gate_up_GD = in.w_gate_up_EGD.select(0, e), w_down_DF = in.w_down_EDF.select(0, e);
    const auto grad_RD = grad_TD.index_select(0, part(sorted.token_P)), gate_R1 = part(gate_P).unsqueeze(1);
    const auto active = activate(part(kept.hidden_PG), in.form.activation, true);
    const auto grad_active_RF = widened(at::mm(grad_RD, w_down_DF));  // without the gate
    auto grad_gate_R = (grad_active_RF * active.value).sum(1);
    if (in.form.down_bias_ED.defined()) {
      grad_gate_R = grad_gate_R + (widened(grad_RD) * in.form.down_bias_ED.select(0, e)).sum(1);
      out.down_bias_ED.select(0, e).copy_((widened(grad_RD) * gate_R1).sum(0));
    }
    part(grad_gate_P).copy_(grad_gate_R);
    auto grad_down_DF = out.w_down_EDF.select(0, e);
    at::mm_out(grad_down_DF, grad_RD.t(), (active.value * gate_R1).to(dtype));

    const auto weighted_RF = grad_active_RF * gate_R1;
    const auto grad_hidden_RG = at::cat({weighted_RF * active.by_gate, weighted_RF * active.by_up}, 1).to(dtype);
    auto grad_gate_up_GD = out.w_gate_up_EGD.select(0, e);
    at::mm_out(grad_gate_up_GD, grad_hidden_RG.t(), in.x_TD.index_select(0, part(sorted.token_P)));
    if (out.gate_up_bias_EG.defined()) out.gate_up_bias_EG.select(0, e).copy_(widened(grad_hidden_RG).sum(0));
    auto grad_in_RD = part(grad_in_PD);
    at::mm_out(grad_in_RD, grad_hidden_RG, w_gate_up_GD);
  });
  out.x_TD = sorted.combine(grad_in_PD, {});
  out.gate_TK = sorted.of_pairs(grad_gate_P);
  return out;
}

}  // namespace

const detail::MoeVariant kExperts{forward, backward};

}  // namespace coppice::kernels::aten
