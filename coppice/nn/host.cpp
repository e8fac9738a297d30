#include "coppice/nn/host.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "coppice/base/check.h"

namespace coppice::nn {
namespace {

void require_on_host(const at::Tensor& tensor) {
  COPPICE_CHECK(tensor.is_cpu() && tensor.is_contiguous(), "a tensor of ", tensor.device().str(),
                tensor.is_contiguous() ? "" : " that is not contiguous");
}

}  // namespace

at::Tensor on_host(const at::Tensor& tensor) { return tensor.detach().to(at::kCPU).contiguous(); }

at::Tensor to_device(const at::Tensor& here, at::Device device) {
  COPPICE_CHECK(here.is_cpu());
  return here.to(device, /*non_blocking=*/true);
}

at::Tensor host_empty(at::IntArrayRef sizes, at::ScalarType dtype, at::Device device) {
  return at::empty(sizes, at::TensorOptions().dtype(dtype).pinned_memory(!device.is_cpu()));
}

std::vector<at::Tensor> on_host_together(std::span<const at::Tensor> tensors) {
  if (tensors.empty() || tensors.front().is_cpu()) return {tensors.begin(), tensors.end()};
  std::vector<at::Tensor> parts, out;
  int64_t total = 0;
  for (const at::Tensor& t : tensors) {
    COPPICE_CHECK(t.scalar_type() == at::kLong || t.scalar_type() == at::kDouble);
    parts.push_back(t.detach().contiguous().view({-1}).view(at::kLong));  // the bits
    total += t.numel();
  }
  const at::Tensor here = host_empty({total}, at::kLong, tensors.front().device());
  here.copy_(at::cat(parts));
  int64_t begin = 0;
  for (const at::Tensor& t : tensors) {
    out.push_back(here.narrow(0, begin, t.numel()).view(t.scalar_type()).view(t.sizes()));
    begin += t.numel();
  }
  return out;
}

at::Tensor host_copy(const at::Tensor& tensor, at::ScalarType dtype) {
  const at::Tensor here = host_empty(tensor.sizes(), dtype, tensor.device());
  return here.copy_(tensor.detach());
}

void fill_from_host(const at::Tensor& place, const std::function<void(std::span<float>)>& fill) {
  const bool in_place = place.is_cpu() && place.is_contiguous();
  const at::Tensor here = in_place ? place : at::empty(place.sizes(), at::kFloat);
  fill(host_values<float>(here));
  if (!in_place) place.copy_(here);
}

template <class T>
std::span<T> host_values(const at::Tensor& tensor) {
  require_on_host(tensor);
  return {tensor.mutable_data_ptr<T>(), static_cast<size_t>(tensor.numel())};
}

template <class T>
std::vector<T> to_host(const at::Tensor& tensor) {
  const at::Tensor here = on_host(tensor);
  const auto* const values = here.const_data_ptr<T>();
  return {values, values + here.numel()};
}

template <class T>
at::Tensor from_host(std::span<const T> values, at::IntArrayRef sizes, at::Device device) {
  const at::Tensor here = host_empty(sizes, c10::CppTypeToScalarType<T>::value, device);
  COPPICE_CHECK(static_cast<size_t>(here.numel()) == values.size());
  std::ranges::copy(values, host_values<T>(here).begin());
  return to_device(here, device);
}

double number(const at::Tensor& scalar) {
  COPPICE_CHECK(scalar.numel() == 1, "a tensor of ", scalar.numel(), " elements");
  return scalar.item<double>();
}

std::span<std::byte> host_bytes(const at::Tensor& tensor) {
  require_on_host(tensor);
  return {static_cast<std::byte*>(tensor.mutable_data_ptr()), tensor.nbytes()};
}

std::span<int64_t> token_row(const at::Tensor& ids_BS, int64_t b) {
  const auto length = static_cast<size_t>(ids_BS.size(1));
  return host_values<int64_t>(ids_BS).subspan(static_cast<size_t>(b) * length, length);
}

#define COPPICE_HOST_VALUES(T)                             \
  template std::span<T> host_values<T>(const at::Tensor&); \
  template std::vector<T> to_host<T>(const at::Tensor&);   \
  template at::Tensor from_host<T>(std::span<const T>, at::IntArrayRef, at::Device);
COPPICE_HOST_VALUES(float)
COPPICE_HOST_VALUES(double)
COPPICE_HOST_VALUES(int64_t)
COPPICE_HOST_VALUES(int32_t)
#undef COPPICE_HOST_VALUES

}  // namespace coppice::nn
