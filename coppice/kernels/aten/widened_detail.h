#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>

namespace coppice::kernels::aten {

/// The dtype that numbers of `dtype` are computed in: f32, or f64 for f64.
inline at::ScalarType wide(at::ScalarType dtype) { return at::toOpMathType(dtype); }
/// The tensor in that dtype; itself if it has it.
inline at::Tensor widened(const at::Tensor& x) { return x.to(wide(x.scalar_type())); }

}  // namespace coppice::kernels::aten
