#include "coppice/matrix/matrices_bytes.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <utility>

#include "coppice/matrix/finite.h"
#include "coppice/matrix/matrix_bytes.h"

namespace coppice::matrix {
namespace {

using models::ExpertMatrix;

size_t width_of(io::Dtype dtype) { return io::dtype_bytes(dtype); }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// The matrices are prepared when their first bytes are requested.
class MatricesBytes {
 public:
  MatricesBytes(std::vector<ExpertMatrix> places, io::Dtype dtype, std::function<std::vector<MatrixRows>()> prepare)
      : dtype_(dtype), places_(std::move(places)), prepare_(std::move(prepare)) {}

  void fill(uint64_t offset, std::span<std::byte> out) {
    std::call_once(once_, [&] { matrices_ = prepare_(); });
    std::ranges::all_of(places_, &ExpertMatrix::lies_in_rows) ? fill_rows(matrices_, offset, out)
                                                              : fill_whole(matrices_, out);
  }

 private:
  using Matrices = std::vector<MatrixRows>;

  void fill_rows(const Matrices& matrices, uint64_t offset, std::span<std::byte> out) const {
    const int64_t cols = places_.front().cols;
    const auto row_bytes = static_cast<uint64_t>(cols) * width_of(dtype_);
    const uint64_t end = offset + out.size();
    const auto end_row = static_cast<int64_t>((end + row_bytes - 1) / row_bytes);
    const int64_t step = MatrixRows::block_rows(cols);
    std::vector<std::byte> edge;  // rows of which only a part is requested
    for (auto row = static_cast<int64_t>(offset / row_bytes); row < end_row; row += step) {
      const int64_t last = std::min(row + step, end_row);
      const uint64_t from = static_cast<uint64_t>(row) * row_bytes, to = static_cast<uint64_t>(last) * row_bytes;
      if (from >= offset && to <= end) {
        make_rows(matrices, row, last, out.subspan(from - offset, to - from));
        continue;
      }
      edge.resize(to - from);
      make_rows(matrices, row, last, edge);
      const uint64_t begin = std::max(from, offset);
      const auto wanted = std::span(edge).subspan(begin - from, std::min(to, end) - begin);
      std::ranges::copy(wanted, out.begin() + static_cast<std::ptrdiff_t>(begin - offset));
    }
  }

  /// Rows [begin, end) of the tensor, from all matrices that they belong to.
  void make_rows(const Matrices& matrices, int64_t begin, int64_t end, std::span<std::byte> out) const {
    std::vector<float> values;
    for (size_t i = 0; i < places_.size(); ++i) {
      const ExpertMatrix& place = places_[i];
      const int64_t stride = place.row_stride(), at = place.first_row();
      const int64_t from = std::max<int64_t>(0, ceil_div(begin - at, stride));
      const int64_t to = std::min(place.rows, ceil_div(end - at, stride));
      if (from >= to) continue;
      const auto cols = static_cast<size_t>(place.cols), row_bytes = cols * width_of(dtype_);
      values.resize(static_cast<size_t>(to - from) * cols);
      matrices[i].read(from, values);
      if (stride == 1) {
        const auto place_in_out = static_cast<size_t>(at + from - begin) * row_bytes;
        round_finite(dtype_, values, out.subspan(place_in_out, values.size() * width_of(dtype_)), matrices[i].subject);
        continue;
      }
      for (int64_t r = from; r < to; ++r) {
        const auto row = std::span<const float>(values).subspan(static_cast<size_t>(r - from) * cols, cols);
        const auto place_in_out = static_cast<size_t>(at + r * stride - begin) * row_bytes;
        round_finite(dtype_, row, out.subspan(place_in_out, row_bytes), matrices[i].subject);
      }
    }
  }

  void fill_whole(const Matrices& matrices, std::span<std::byte> out) const {
    std::vector<std::byte> matrix;
    for (size_t i = 0; i < places_.size(); ++i) {
      const size_t width = width_of(dtype_);
      matrix.resize(static_cast<size_t>(places_[i].rows * places_[i].cols) * width);
      round_rows(matrices[i], dtype_, matrix);
      models::scatter(places_[i], width, matrix, out);
    }
  }

  const io::Dtype dtype_;
  const std::vector<ExpertMatrix> places_;
  const std::function<Matrices()> prepare_;

  std::once_flag once_;
  Matrices matrices_;
};

}  // namespace

BytesFill matrices_fill(std::vector<ExpertMatrix> places, io::Dtype dtype,
                        std::function<std::vector<MatrixRows>()> prepare) {
  const auto bytes = std::make_shared<MatricesBytes>(std::move(places), dtype, std::move(prepare));
  return [bytes](uint64_t offset, std::span<std::byte> out) { bytes->fill(offset, out); };
}

uint64_t matrices_bytes(std::span<const ExpertMatrix> places, io::Dtype dtype) {
  uint64_t elements = 0;
  for (const ExpertMatrix& place : places) elements += static_cast<uint64_t>(place.rows * place.cols);
  return elements * width_of(dtype);
}

bool matrices_cuttable(std::span<const ExpertMatrix> places, bool by_rows) {
  return by_rows && std::ranges::all_of(places, &ExpertMatrix::lies_in_rows);
}

}  // namespace coppice::matrix
