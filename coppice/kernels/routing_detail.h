#pragma once

// The variants of what routing.h has. Tensors are contiguous.

#include "coppice/kernels/routing.h"

namespace coppice::kernels {

namespace cpu {
at::Tensor choose_top_k(const at::Tensor& score_TN, const TopK& choice);
at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts);
at::Tensor gate_mass(const at::Tensor& index_TK, const at::Tensor& gate_TK, int64_t num_experts, double divisor);
}  // namespace cpu

namespace aten {
at::Tensor choose_top_k(const at::Tensor& score_TN, const TopK& choice);
at::Tensor expert_counts(const at::Tensor& index_TK, int64_t num_experts);
at::Tensor gate_mass(const at::Tensor& index_TK, const at::Tensor& gate_TK, int64_t num_experts, double divisor);
}  // namespace aten

}  // namespace coppice::kernels
