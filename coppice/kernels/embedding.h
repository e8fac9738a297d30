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

/// out[ids[t]] += x[t] for each t in turn, from zeros: its gradient.
///
/// Shapes   x_TD; ids_T int64; returns [rows, D].
/// Dtypes   f32.
/// Threads  the bits do not depend on the number of threads, nor on a GPU on the run (as those of index_add do).
at::Tensor sum_rows(const at::Tensor& x_TD, const at::Tensor& ids_T, int64_t rows);

}  // namespace coppice::kernels
