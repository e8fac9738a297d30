#pragma once

// What the calls of a group demand of their tensors, the same for every size of a group.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace coppice::dist {

/// Throws   Error{kShape} naming `call` and `name`, unless the tensor is contiguous and on `device`.
void check_tensor(const char* call, const char* name, const at::Tensor& tensor, at::Device device);
/// Throws   Error{kShape} unless it can be summed.
void check_reducible(const char* call, const at::Tensor& tensor);
/// Throws   Error{kShape} unless `large` is `size` times `small`, of the same dtype.
void check_parts(const char* call, const char* large_name, const at::Tensor& large, const char* small_name,
                 const at::Tensor& small, int64_t size);
/// Throws   Error{kShape} unless the counts add up and the rows of both tensors are alike.
void check_rows(const at::Tensor& out, const at::Tensor& in, std::span<const int64_t> out_rows,
                std::span<const int64_t> in_rows, int64_t size);
/// Throws   Error{kShape} unless `root` is a rank of a group of `size`.
void check_root(int64_t root, int64_t size);

}  // namespace coppice::dist
