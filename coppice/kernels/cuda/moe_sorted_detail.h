#pragma once

// The MoE layer with pairs sorted on the device: tables and rows by SortedRows, GEMMs by libtorch. The shapes do not
// depend on the chosen experts, so the host need not wait for the device. T tokens, D model dimension, E experts, K
// choices per token, F expert width, G = 2F, P rows.

#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>

#include <span>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/kernels/cuda/sorted_rows_detail.h"
#include "coppice/kernels/kept_order_detail.h"
#include "coppice/kernels/moe_detail.h"

namespace coppice::kernels::cuda {

using detail::KeptOrder;
using detail::MoeForward;
using detail::MoeGradients;
using detail::MoeInputs;

enum class ExpertGemms {
  kGrouped,  ///< libtorch's grouped GEMM
  kLoop,     ///< one GEMM per expert; the host waits for the sort
};

/// Whether libtorch's grouped GEMM supports these tensors: bf16, sizes and pointers multiples of 16 bytes, few enough
/// experts.
inline bool fits_grouped_gemm(const MoeInputs& in) {
  constexpr int64_t kNumbers = 8, kMostExperts = 1023;
  const auto aligned = [](const at::Tensor& t) { return reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0; };
  return in.x_TD.scalar_type() == at::kBFloat16 && in.w_down_EDF.size(0) <= kMostExperts &&
         in.w_down_EDF.size(1) % kNumbers == 0 && in.w_down_EDF.size(2) % kNumbers == 0 && aligned(in.w_gate_up_EGD) &&
         aligned(in.w_down_EDF);
}

/// Products of each expert's rows with its own matrix. Rows after the last expert's are not changed.
class RowGemms {
 public:
  /// `here`: first_row on the host, for kLoop; undefined for kGrouped.
  RowGemms(const at::Tensor& first_row, const at::Tensor& here)
      : end_E_(first_row.narrow(0, 1, first_row.numel() - 1)), here_(here) {}

  /// Row by row, rows_PM times weight_EMN of its expert.
  at::Tensor rows(const at::Tensor& rows_PM, const at::Tensor& weight_EMN) const {
    if (!here_.defined()) return at::_grouped_mm(rows_PM, weight_EMN, end_E_);
    const auto out_PN = at::empty({rows_PM.size(0), weight_EMN.size(2)}, rows_PM.options());
    for_each_expert([&](int64_t expert, int64_t first, int64_t count) {
      auto out = out_PN.narrow(0, first, count);
      at::mm_out(out, rows_PM.narrow(0, first, count), weight_EMN.select(0, expert));
    });
    return out_PN;
  }

  /// weight_e = left_e' right_e.
  at::Tensor weights(const at::Tensor& left_PM, const at::Tensor& right_PN) const {
    if (!here_.defined()) return at::_grouped_mm(left_PM.t(), right_PN, end_E_);
    const auto out_EMN = at::empty({end_E_.numel(), left_PM.size(1), right_PN.size(1)}, left_PM.options());
    for_each_expert([&](int64_t expert, int64_t first, int64_t count) {
      auto out = out_EMN.select(0, expert);
      at::mm_out(out, left_PM.narrow(0, first, count).t(), right_PN.narrow(0, first, count));
    });
    return out_EMN;
  }

 private:
  template <class F>
  void for_each_expert(const F& f) const {
    const auto* const first_row = here_.const_data_ptr<int32_t>();
    for (int64_t e = 0; e + 1 < here_.numel(); ++e)
      f(e, int64_t{first_row[e]}, int64_t{first_row[e + 1] - first_row[e]});
  }

  at::Tensor end_E_, here_;
};

/// Forward and backward; T is float or Bf16.
template <class Launch, class T>
class SortedExperts {
 public:
  /// For the forward pass: sorts. For kLoop the host waits for that.
  SortedExperts(const MoeInputs& in, const Launch& launch, ExpertGemms kind)
      : SortedExperts(in, launch, detail::room_for_order(in, most_rows(in.index_TK.numel(), in.w_down_EDF.size(0)))) {
    const auto scratch = at::empty({sort_scratch(kept_.order)}, kept_.first_row.options());
    rows_.sort(scratch.mutable_data_ptr<int32_t>());
    if (kind == ExpertGemms::kLoop) use_loop(kept_.first_row.cpu());
  }
  /// For the backward pass: in the order of the forward pass.
  SortedExperts(const MoeInputs& in, const Launch& launch, const MoeForward& from)
      : SortedExperts(in, launch, detail::order_from(in, std::span(from.order).first(3))) {
    if (from.order.size() > 3) use_loop(from.order[3]);
  }

  MoeForward forward() const {
    MoeForward out;
    out.hidden_PG = gemms_.rows(gather(in_.x_TD), in_.w_gate_up_EGD.transpose(1, 2));
    const auto active_PF = rows_of(width_);
    rows_.activate(hidden(out.hidden_PG), data(active_PF));
    const auto out_PD = gemms_.rows(active_PF, in_.w_down_EDF.transpose(1, 2));
    const typename Rows::Outputs outputs{data(out_PD), data(in_.form.down_bias_ED), dim_};
    out.y_TD = combine(outputs, in_.gate_TK.const_data_ptr<float>());
    if (in_.with_pair_sq) {
      out.pair_sq_TK = at::empty_like(in_.gate_TK);
      rows_.pair_squares(outputs, out.pair_sq_TK.mutable_data_ptr<float>());
    }
    out.order = kept_.tables();
    if (here_.defined()) out.order.push_back(here_);
    return out;
  }

  MoeGradients backward(const at::Tensor& hidden_PG, const at::Tensor& grad_TD) const {
    COPPICE_CHECK(hidden_PG.size(0) == kept_.order.rows && hidden_PG.is_contiguous());
    const auto* const gates = in_.gate_TK.const_data_ptr<float>();
    MoeGradients out;
    out.gate_TK = at::empty_like(in_.gate_TK);
    auto* const grad_gates = out.gate_TK.mutable_data_ptr<float>();
    auto grad_PD = gather(grad_TD);
    auto active_PF = gemms_.rows(grad_PD, in_.w_down_EDF);  // the gradient of the activation first
    const auto grad_hidden_PG = rows_of(2 * width_);
    rows_.activate_backward(hidden(hidden_PG), {.gate_TK = gates,
                                                .active_PF = data(active_PF),
                                                .grad_hidden_PG = data(grad_hidden_PG),
                                                .grad_gate_TK = grad_gates});
    if (in_.form.down_bias_ED.defined()) {
      rows_.gates_through_bias(data(grad_TD), data(in_.form.down_bias_ED), dim_, grad_gates);
      out.down_bias_ED = sum_by_expert(grad_PD, gates);
    }
    out.w_down_EDF = gemms_.weights(grad_PD, active_PF);
    grad_PD.reset();
    active_PF.reset();
    if (in_.form.gate_up_bias_EG.defined()) out.gate_up_bias_EG = sum_by_expert(grad_hidden_PG, nullptr);
    out.w_gate_up_EGD = gemms_.weights(grad_hidden_PG, gather(in_.x_TD));
    const auto grad_rows_PD = gemms_.rows(grad_hidden_PG, in_.w_gate_up_EGD);
    out.x_TD = combine({data(grad_rows_PD), nullptr, dim_}, nullptr);
    return out;
  }

 private:
  using Rows = SortedRows<Launch, T>;

  SortedExperts(const MoeInputs& in, const Launch& launch, KeptOrder kept)
      : in_(in),
        dim_(in.x_TD.size(1)),
        width_(in.w_down_EDF.size(2)),
        kept_(std::move(kept)),
        rows_(launch, kept_.order),
        gemms_(kept_.first_row, at::Tensor()) {}
  void use_loop(const at::Tensor& first_row) {
    here_ = first_row;
    gemms_ = RowGemms(kept_.first_row, here_);
  }

  typename Rows::Hidden hidden(const at::Tensor& hidden_PG) const {
    return {data(hidden_PG), data(in_.form.gate_up_bias_EG), width_,
            in_.form.activation == ExpertActivation::kClampedSwiglu};
  }
  static T* data(const at::Tensor& t) {
    if (!t.defined()) return nullptr;
    COPPICE_CHECK(t.is_contiguous() && t.element_size() == sizeof(T));
    return static_cast<T*>(t.data_ptr());
  }
  at::Tensor rows_of(int64_t columns) const { return at::empty({kept_.order.rows, columns}, in_.x_TD.options()); }

  at::Tensor gather(const at::Tensor& from_TD) const {
    const auto out_PD = rows_of(dim_);
    rows_.gather(data(from_TD), dim_, data(out_PD));
    return out_PD;
  }
  at::Tensor combine(const typename Rows::Outputs& rows, const float* weight_TK) const {
    auto out_TD = at::empty_like(in_.x_TD);
    rows_.combine(rows, weight_TK, data(out_TD));
    return out_TD;
  }
  at::Tensor sum_by_expert(const at::Tensor& rows_PN, const float* gate_TK) const {
    const int64_t columns = rows_PN.size(1);
    const auto f32 = rows_PN.options().dtype(at::kFloat);
    const auto scratch = at::empty({num_blocks(kept_.order.rows), columns}, f32);
    const auto out_EN = at::empty({kept_.order.experts, columns}, rows_PN.options());
    rows_.sum_by_expert(data(rows_PN), gate_TK, columns, scratch.mutable_data_ptr<float>(), data(out_EN));
    return out_EN;
  }

  const MoeInputs& in_;
  const int64_t dim_, width_;
  const KeptOrder kept_;
  const Rows rows_;
  at::Tensor here_;  ///< first_row on the host, for kLoop
  RowGemms gemms_;
};

}  // namespace coppice::kernels::cuda
