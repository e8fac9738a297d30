#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::kernels {

/// The rows of a table that ids name, in f32; differentiable in the table.
///
/// Shapes   table_VD, contiguous; ids_T int64; returns [T, D].
/// Dtypes   table f32 or bf16; its gradient has its dtype: a row's gradients are summed in f32, in the order of ids, and
///          rounded once.
/// Memory   the rows only, not the table in f32; saves ids. The gradient once in the table's dtype; off the CPU also
///          once in f32 while it is made.
/// Threads  the bits do not depend on the number of threads.
/// Throws   c10::Error for an id outside [0, V), from libtorch's operator.
at::Tensor embed(const at::Tensor& table_VD, const at::Tensor& ids_T);

}  // namespace coppice::kernels
