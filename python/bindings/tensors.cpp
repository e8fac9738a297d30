#include "python/bindings/tensors.h"

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/models/expert_layout.h"

namespace coppice::python {
namespace {

namespace nb = nanobind;

models::ExpertMatrix place_of(int64_t rows, int64_t cols, int64_t row_step, int64_t col_step) {
  return {.role = families::Role::kExpertOther,
          .rows = rows,
          .cols = cols,
          .begin = 0,
          .row_step = row_step,
          .col_step = cols == 1 ? 1 : col_step};
}

}  // namespace

io::Dtype dtype_of(const Tensor& tensor, std::string_view what) {
  const auto dtype = tensor.dtype();
  const auto code = static_cast<nb::dlpack::dtype_code>(dtype.code);
  if (dtype.lanes == 1 && code == nb::dlpack::dtype_code::Float && dtype.bits == 32) return io::Dtype::kF32;
  if (dtype.lanes == 1 && code == nb::dlpack::dtype_code::Float && dtype.bits == 16) return io::Dtype::kF16;
  if (dtype.lanes == 1 && code == nb::dlpack::dtype_code::Bfloat && dtype.bits == 16) return io::Dtype::kBf16;
  throw Error(ErrorCode::kShape, cat(what, ": DLPack dtype with code ", static_cast<int>(dtype.code), " and ",
                                     static_cast<int>(dtype.bits), " bits; wanted float32, bfloat16 or float16"));
}

StridedMatrix::StridedMatrix(const Tensor& tensor, std::string_view what) : dtype_(dtype_of(tensor, what)) {
  if (tensor.ndim() != 1 && tensor.ndim() != 2) {
    throw Error(ErrorCode::kShape, cat(what, ": ", tensor.ndim(), " dimensions; wanted a matrix or a vector"));
  }
  rows_ = static_cast<int64_t>(tensor.shape(0));
  row_step_ = tensor.stride(0);
  if (tensor.ndim() == 2) {
    cols_ = static_cast<int64_t>(tensor.shape(1));
    col_step_ = tensor.stride(1);
  }
  data_ = static_cast<std::byte*>(const_cast<void*>(static_cast<const void*>(tensor.data())));
}

size_t StridedMatrix::size_bytes() const { return static_cast<size_t>(rows_ * cols_) * io::dtype_bytes(dtype_); }

std::span<std::byte> StridedMatrix::memory() const {
  const bool in_order = (cols_ == 1 || col_step_ == 1) && (rows_ == 1 || row_step_ == cols_);
  return in_order ? std::span(data_, size_bytes()) : std::span<std::byte>();
}

matrix::MatrixBytes StridedMatrix::read(std::vector<std::byte>& buffer) const {
  std::span<const std::byte> bytes = memory();
  if (bytes.empty() && size_bytes() > 0) {
    buffer.resize(size_bytes());
    const auto place = place_of(rows_, cols_, row_step_, col_step_);
    const auto width = io::dtype_bytes(dtype_);
    const auto last = (rows_ - 1) * row_step_ + (cols_ - 1) * col_step_;
    models::gather(place, width, {data_, static_cast<size_t>(last + 1) * width}, buffer);
    bytes = buffer;
  }
  return {dtype_, rows_, cols_, bytes};
}

void StridedMatrix::write(std::span<const std::byte> values) const {
  const auto width = io::dtype_bytes(dtype_);
  const auto last = (rows_ - 1) * row_step_ + (cols_ - 1) * col_step_;
  models::scatter(place_of(rows_, cols_, row_step_, col_step_), width, values,
                  {data_, static_cast<size_t>(last + 1) * width});
}

}  // namespace coppice::python
