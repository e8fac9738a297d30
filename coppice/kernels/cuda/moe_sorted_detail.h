#pragma once

// The MoE layer with pairs sorted on the device: tables and rows by SortedRows, GEMMs by libtorch. The shapes do not
// depend on the chosen experts, so the host need not wait for the device. T tokens, D model dimension, E experts, K
// choices per token, F expert width, G = 2F, P rows.

#include <ATen/ops/_grouped_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>

#include <limits>
#include <type_traits>

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
  RowGemms(const at::Tensor& first_row, ExpertGemms kind) : end_E_(first_row.narrow(0, 1, first_row.numel() - 1)) {
    if (kind == ExpertGemms::kGrouped) return;
    const auto host = first_row.cpu();
    first_row_.assign(host.const_data_ptr<int32_t>(), host.const_data_ptr<int32_t>() + host.numel());
  }

  /// Row by row, rows_PM times weight_EMN of its expert.
  at::Tensor rows(const at::Tensor& rows_PM, const at::Tensor& weight_EMN) const {
    if (first_row_.empty()) return at::_grouped_mm(rows_PM, weight_EMN, end_E_);
    const auto out_PN = at::empty({rows_PM.size(0), weight_EMN.size(2)}, rows_PM.options());
    for_each_expert([&](int64_t expert, int64_t first, int64_t count) {
      auto out = out_PN.narrow(0, first, count);
      at::mm_out(out, rows_PM.narrow(0, first, count), weight_EMN.select(0, expert));
    });
    return out_PN;
  }

  /// weight_e = left_e' right_e.
  at::Tensor weights(const at::Tensor& left_PM, const at::Tensor& right_PN) const {
    if (first_row_.empty()) return at::_grouped_mm(left_PM.t(), right_PN, end_E_);
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
    for (size_t e = 0; e + 1 < first_row_.size(); ++e) {
      f(static_cast<int64_t>(e), int64_t{first_row_[e]}, int64_t{first_row_[e + 1]} - first_row_[e]);
    }
  }

  at::Tensor end_E_;
  std::vector<int32_t> first_row_;  // empty: grouped
};

/// The order that SortedRows fills, with its scratch.
struct SortedOrder : KeptOrder {
  at::Tensor chunk_count;  ///< int32

  explicit SortedOrder(const MoeInputs& in)
      : KeptOrder(detail::room_for_order(in, most_rows(in.index_TK.numel(), in.w_down_EDF.size(0)))),
        chunk_count(at::empty({num_chunks(order.pairs()) * order.experts}, first_row.options())) {}
};

/// Forward and backward; T is float or Bf16.
template <class Launch, class T>
class SortedExperts {
 public:
  SortedExperts(const MoeInputs& in, const Launch& launch, ExpertGemms kind)
      : in_(in),
        dim_(in.x_TD.size(1)),
        width_(in.w_down_EDF.size(2)),
        kept_(in),
        rows_(launch, kept_.order, kept_.chunk_count.mutable_data_ptr<int32_t>()),
        gemms_(kept_.first_row, kind) {}

  MoeForward forward() const {
    const auto hidden_PG = gemms_.rows(gather(in_.x_TD), in_.w_gate_up_EGD.transpose(1, 2));
    const auto active_PF = rows_of(width_);
    rows_.activate(data(hidden_PG), width_, data(active_PF));
    const auto out_PD = gemms_.rows(active_PF, in_.w_down_EDF.transpose(1, 2));
    return {combine(out_PD, in_.gate_TK.const_data_ptr<float>()), hidden_PG};
  }

  MoeGradients backward(const at::Tensor& hidden_PG, const at::Tensor& grad_TD) const {
    COPPICE_CHECK(hidden_PG.size(0) == kept_.order.rows && hidden_PG.is_contiguous());
    const auto grad_gate_TK = at::empty_like(in_.gate_TK);
    auto grad_PD = gather(grad_TD);
    auto active_PF = gemms_.rows(grad_PD, in_.w_down_EDF);  // the gradient of the activation first
    const auto grad_hidden_PG = rows_of(2 * width_);
    rows_.activate_backward({.hidden_PG = data(hidden_PG),
                             .gate_TK = in_.gate_TK.const_data_ptr<float>(),
                             .active_PF = data(active_PF),
                             .grad_hidden_PG = data(grad_hidden_PG),
                             .grad_gate_TK = grad_gate_TK.mutable_data_ptr<float>()},
                            width_);
    auto grad_down_EDF = gemms_.weights(grad_PD, active_PF);
    grad_PD.reset();
    active_PF.reset();
    auto grad_gate_up_EGD = gemms_.weights(grad_hidden_PG, gather(in_.x_TD));
    auto grad_x_TD = combine(gemms_.rows(grad_hidden_PG, in_.w_gate_up_EGD), nullptr);
    return {std::move(grad_x_TD), std::move(grad_gate_up_EGD), std::move(grad_down_EDF), grad_gate_TK};
  }

 private:
  static T* data(const at::Tensor& t) {
    COPPICE_CHECK(t.is_contiguous() && t.element_size() == sizeof(T));
    return static_cast<T*>(t.data_ptr());
  }
  at::Tensor rows_of(int64_t columns) const { return at::empty({kept_.order.rows, columns}, in_.x_TD.options()); }

  at::Tensor gather(const at::Tensor& from_TD) const {
    const auto out_PD = rows_of(dim_);
    rows_.gather(data(from_TD), dim_, data(out_PD));
    return out_PD;
  }
  at::Tensor combine(const at::Tensor& rows_PD, const float* weight_TK) const {
    auto out_TD = at::empty_like(in_.x_TD);
    rows_.combine(data(rows_PD), weight_TK, dim_, data(out_TD));
    return out_TD;
  }

  const MoeInputs& in_;
  const int64_t dim_, width_;
  const SortedOrder kept_;
  const SortedRows<Launch, T> rows_;
  const RowGemms gemms_;
};

}  // namespace coppice::kernels::cuda
