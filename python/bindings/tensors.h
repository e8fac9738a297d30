#pragma once

// Tensors of any library, by DLPack: strided memory of the host. bf16 has no C++ type, so the dtype is read from the
// tensor.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/families/family.h"
#include "coppice/io/dtype.h"
#include "coppice/matrix/matrix_bytes.h"

namespace coppice::python {

using Tensor = nanobind::ndarray<nanobind::device::cpu>;

/// Throws   Error{kShape}: a dtype that is not F32, BF16 or F16, naming `what`.
io::Dtype dtype_of(const Tensor& tensor, std::string_view what);

/// A tensor of one or two dimensions as a matrix, [out, in]; a vector has one column.
class StridedMatrix {
 public:
  /// Throws   Error{kShape}: another number of dimensions or another dtype, naming `what`.
  StridedMatrix(const Tensor& tensor, std::string_view what);

  io::Dtype dtype() const { return dtype_; }
  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  size_t size_bytes() const;

  /// Its values in order: the tensor's own memory if they lie there in order, else copied to `buffer`.
  matrix::MatrixBytes read(std::vector<std::byte>& buffer) const;
  /// Sets the values from bytes in order.
  void write(std::span<const std::byte> values) const;
  /// The tensor's own memory; empty if its values do not lie there in order.
  std::span<std::byte> memory() const;

 private:
  io::Dtype dtype_;
  int64_t rows_ = 0, cols_ = 1, row_step_ = 1, col_step_ = 1;
  std::byte* data_ = nullptr;
};

}  // namespace coppice::python
