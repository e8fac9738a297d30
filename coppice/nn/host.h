#pragma once

// The one place above kernels/ where the host touches the elements of tensors. Everything else there is libtorch's
// operators, which run on any device. tools/check_layers holds that.

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace coppice::nn {

/// Copy of a tensor's elements, row-major. On a GPU this waits for the device: once a step, not once a layer.
///
/// Shapes   any.
/// Dtypes   T is the tensor's: float, double, int64_t, int32_t.
/// Memory   the copy; for a tensor of a device or not contiguous, once more while it runs.
template <class T>
std::vector<T> to_host(const at::Tensor& tensor);

/// The tensor itself if it is on the host and contiguous, otherwise a copy that is. From a device this waits for it.
at::Tensor on_host(const at::Tensor& tensor);

/// A tensor of the host on `device`; itself if that is the CPU. From pinned memory the host does not wait, so it must
/// not write there again.
at::Tensor to_device(const at::Tensor& here, at::Device device);

/// A new tensor of the host, not filled; in pinned memory if it will be sent to `device` or received from it.
at::Tensor host_empty(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device);

/// Gives `place`, a view of a f32 tensor, the values that `fill` writes, in row-major order.
///
/// Memory   one copy, unless the place is contiguous and on the CPU.
void fill_from_host(const at::Tensor& place, const std::function<void(std::span<float>)>& fill);

/// The tensors on the host, all of one device, in one transfer: from a device this waits for it once.
///
/// Dtypes   int64 and f64.
std::vector<at::Tensor> on_host_together(std::span<const at::Tensor> tensors);

/// A new tensor of the host with the values of `tensor` as `dtype`; in pinned memory if it comes from a device.
at::Tensor host_copy(const at::Tensor& tensor, at::ScalarType dtype);

/// The element of a tensor with one element, of any dtype. On a GPU this waits for the device.
double number(const at::Tensor& scalar);

/// A tensor with a copy of these elements, on `device`.
template <class T>
at::Tensor from_host(std::span<const T> values, at::IntArrayRef sizes, at::Device device);

/// The elements of a contiguous tensor of the CPU, in place: to fill it or to read it without a copy.
///
/// Throws   Error{kInternal} for a tensor of another device or dtype, or one that is not contiguous.
template <class T>
std::span<T> host_values(const at::Tensor& tensor);

/// Bytes of a contiguous tensor of the CPU, in place. Throws as host_values.
std::span<std::byte> host_bytes(const at::Tensor& tensor);

/// Sequence `b` of a batch on the CPU, to be filled.
///
/// Shapes   ids_BS [B, S] int64, contiguous; returns S elements of it.
std::span<int64_t> token_row(const at::Tensor& ids_BS, int64_t b);

}  // namespace coppice::nn
