#include "coppice/matrix/stored_matrix.h"

#include <memory>
#include <string>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/text.h"
#include "coppice/io/block_file.h"
#include "coppice/matrix/finite.h"

namespace coppice::matrix {
namespace {

using models::ExpertMatrix;

MatrixRows rows_in_file(const StoredExpert& stored, const ExpertMatrix& place) {
  const io::Dtype dtype = stored.entry.info->dtype;
  const uint64_t offset = stored.entry.info->offset + stored.slice.offset;
  const auto read = [file = stored.entry.file, dtype, offset, place](int64_t first, std::span<float> out) {
    const auto cols = static_cast<size_t>(place.cols), row_bytes = cols * io::dtype_bytes(dtype);
    const size_t count = out.size() / cols, stride = static_cast<size_t>(place.row_stride());
    const uint64_t begin = offset + static_cast<uint64_t>(place.first_row() + first * place.row_stride()) * row_bytes;
    // Rows that are far apart are read one by one.
    const size_t step = (stride - 1) * row_bytes >= io::kBlockBytes ? 1 : count;
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
      std::make_shared<std::vector<std::byte>>(static_cast<size_t>(place.rows * place.cols) * io::dtype_bytes(dtype));
  models::gather(place, io::dtype_bytes(dtype), expert, *matrix);
  MatrixRows rows = rows_of({dtype, place.rows, place.cols, *matrix}, place.role);
  rows.read = [matrix, read = std::move(rows.read)](int64_t first, std::span<float> out) { read(first, out); };
  return rows;
}

}  // namespace

MatrixRows stored_matrix(const StoredExpert& stored, const ExpertMatrix& place) {
  const io::TensorInfo& tensor = *stored.entry.info;
  const bool is_slice = stored.slice.bytes > 0 && stored.slice.bytes < tensor.bytes;
  std::string subject = is_slice ? cat("'", tensor.name, "', expert ", stored.slice.offset / stored.slice.bytes)
                                 : cat("'", tensor.name, "'");
  return only_finite(place.lies_in_rows() ? rows_in_file(stored, place) : gathered_matrix(stored, place),
                     std::move(subject));
}

SourceMatrices::~SourceMatrices() {
  for (const io::Checkpoint::Entry& entry : read_) entry.file->release(*entry.info);
}

MatrixBytes SourceMatrices::read(const io::Checkpoint::Entry& entry) {
  const io::TensorShape& shape = entry.info->shape;
  COPPICE_CHECK(shape.size() == 1 || shape.size() == 2, entry.info->name);
  read_.push_back(entry);
  return {entry.info->dtype, shape[0], shape.size() == 2 ? shape[1] : 1, entry.data()};
}

}  // namespace coppice::matrix
