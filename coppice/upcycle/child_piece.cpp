#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/families/expert_layout.h"
#include "coppice/upcycle/child_piece_detail.h"
#include "coppice/upcycle/finite.h"
#include "coppice/upcycle/grow.h"

namespace coppice::upcycle::detail {
namespace {

using families::ExpertMatrix;
using families::TensorSlot;

constexpr size_t kBlockBytes = 4096;  // what a disk reads at least

size_t width_of(io::Dtype dtype) { return io::dtype_bytes(dtype); }

/// Rows of the matrix are rows of the tensor, perhaps every other one.
bool lies_in_rows(const ExpertMatrix& place) { return place.col_step == 1 && place.cols > 0; }
int64_t first_row(const ExpertMatrix& place) { return place.begin / place.cols; }
int64_t row_stride(const ExpertMatrix& place) { return place.row_step / place.cols; }

MatrixRows rows_in_file(const StoredExpert& stored, const ExpertMatrix& place) {
  const io::Dtype dtype = stored.entry.info->dtype;
  const uint64_t offset = stored.entry.info->offset + stored.slice.offset;
  const auto read = [file = stored.entry.file, dtype, offset, place](int64_t first, std::span<float> out) {
    const auto cols = static_cast<size_t>(place.cols), row_bytes = cols * width_of(dtype);
    const size_t count = out.size() / cols, stride = static_cast<size_t>(row_stride(place));
    const uint64_t begin = offset + static_cast<uint64_t>(first_row(place) + first * row_stride(place)) * row_bytes;
    // Rows with much between them are read one by one.
    const size_t step = (stride - 1) * row_bytes >= kBlockBytes ? 1 : count;
    std::vector<std::byte> bytes(((step - 1) * stride + 1) * row_bytes);
    for (size_t row = 0; row < count; row += step) {
      file->read(begin + row * stride * row_bytes, bytes);
      if (stride == 1) return io::to_f32(dtype, bytes, out);
      for (size_t i = 0; i < step; ++i) {
        const auto from = std::span<const std::byte>(bytes).subspan(i * stride * row_bytes, row_bytes);
        io::to_f32(dtype, from, out.subspan((row + i) * cols, cols));
      }
    }
  };
  return {place.role, place.rows, place.cols, read};
}

MatrixRows gathered_matrix(const StoredExpert& stored, const ExpertMatrix& place) {
  const io::Dtype dtype = stored.entry.info->dtype;
  std::vector<std::byte> expert(stored.slice.bytes);
  stored.entry.file->read(stored.entry.info->offset + stored.slice.offset, expert);
  const auto matrix =
      std::make_shared<std::vector<std::byte>>(static_cast<size_t>(place.rows * place.cols) * width_of(dtype));
  families::gather(place, width_of(dtype), expert, *matrix);
  MatrixRows rows = rows_of({dtype, place.rows, place.cols, *matrix}, place.role);
  rows.read = [matrix, read = std::move(rows.read)](int64_t first, std::span<float> out) { read(first, out); };
  return rows;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// The matrices are prepared when the first of their bytes are asked for.
class MatricesBytes {
 public:
  MatricesBytes(std::vector<ExpertMatrix> places, io::Dtype dtype, std::function<std::vector<MatrixRows>()> prepare)
      : dtype_(dtype), places_(std::move(places)), prepare_(std::move(prepare)) {}

  void fill(uint64_t offset, std::span<std::byte> out) {
    std::call_once(once_, [&] { matrices_ = prepare_(); });
    std::ranges::all_of(places_, lies_in_rows) ? fill_rows(matrices_, offset, out) : fill_whole(matrices_, out);
  }

 private:
  using Matrices = std::vector<MatrixRows>;

  void fill_rows(const Matrices& matrices, uint64_t offset, std::span<std::byte> out) const {
    const int64_t cols = places_.front().cols;
    const auto row_bytes = static_cast<uint64_t>(cols) * width_of(dtype_);
    const uint64_t end = offset + out.size();
    const auto end_row = static_cast<int64_t>((end + row_bytes - 1) / row_bytes);
    const int64_t step = MatrixRows::block_rows(cols);
    std::vector<std::byte> edge;  // rows that are not wanted whole
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

  /// Rows [begin, end) of the tensor, whichever matrices they belong to.
  void make_rows(const Matrices& matrices, int64_t begin, int64_t end, std::span<std::byte> out) const {
    std::vector<float> values;
    for (size_t i = 0; i < places_.size(); ++i) {
      const ExpertMatrix& place = places_[i];
      const int64_t stride = row_stride(place), at = first_row(place);
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
      families::scatter(places_[i], width, matrix, out);
    }
  }

  const io::Dtype dtype_;
  const std::vector<ExpertMatrix> places_;
  const std::function<Matrices()> prepare_;

  std::once_flag once_;
  Matrices matrices_;
};

}  // namespace

MatrixRows stored_matrix(const StoredExpert& stored, const ExpertMatrix& place) {
  const io::TensorInfo& tensor = *stored.entry.info;
  const bool is_slice = stored.slice.bytes > 0 && stored.slice.bytes < tensor.bytes;
  std::string subject = is_slice ? cat("'", tensor.name, "', expert ", stored.slice.offset / stored.slice.bytes)
                                 : cat("'", tensor.name, "'");
  return only_finite(lies_in_rows(place) ? rows_in_file(stored, place) : gathered_matrix(stored, place),
                     std::move(subject));
}

PieceMaker::Fill matrices_fill(std::vector<ExpertMatrix> places, io::Dtype dtype,
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
  return by_rows && std::ranges::all_of(places, lies_in_rows);
}

OutputPiece matrices_piece(std::vector<ExpertMatrix> places, io::Dtype dtype, bool by_rows,
                           std::function<std::vector<MatrixRows>()> prepare) {
  const uint64_t bytes = matrices_bytes(places, dtype);
  const bool cuttable = matrices_cuttable(places, by_rows);
  const auto make = [places = std::move(places), dtype, prepare = std::move(prepare)] {
    return matrices_fill(places, dtype, prepare);
  };
  return computed_piece(bytes, make, cuttable);
}

PieceMaker::Fill child_fill(const GrowthPlan& plan, const Child& child, const TensorSlot& before,
                            const TensorSlot& after, io::Dtype dtype,
                            const std::function<StoredExpert(uint32_t expert)>& original) {
  const auto prepare = [&plan, child, layer = after.layer, original,
                        places = families::expert_matrices(before, plan.experts_before)] {
    std::vector<MatrixRows> matrices;
    for (const ExpertMatrix& place : places) {
      const RowsSource originals = [&](uint32_t expert) { return stored_matrix(original(expert), place); };
      matrices.push_back(child_matrix(plan, layer, child, place.role, originals));
    }
    return matrices;
  };
  return matrices_fill(families::expert_matrices(after, plan.experts_after), dtype, prepare);
}

OutputPiece child_piece(const GrowthPlan& plan, const TensorSlot& after, io::Dtype dtype) {
  const std::vector<ExpertMatrix> places = families::expert_matrices(after, plan.experts_after);
  return {.bytes = matrices_bytes(places, dtype),
          .cuttable = matrices_cuttable(places, grows_by_rows(plan, after.layer))};
}

}  // namespace coppice::upcycle::detail
