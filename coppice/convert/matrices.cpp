#include <algorithm>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/convert/matrices_detail.h"

namespace coppice::convert::detail {

using families::Role;
using io::Checkpoint;
using matrix::MatrixRows;
using models::ExpertMatrix;

ExpertMatrix whole(Role role, const io::TensorShape& shape) {
  int64_t cols = 1;
  for (size_t i = 1; i < shape.size(); ++i) cols *= shape[i];
  return {
      .role = role, .rows = shape.empty() ? 1 : shape[0], .cols = cols, .begin = 0, .row_step = cols, .col_step = 1};
}

ExpertMatrix slice_place(Role role, const io::TensorShape& shape, int64_t index, int64_t count) {
  ExpertMatrix place = whole(role, shape);
  if (role == Role::kExpertDown) {
    place.cols /= count;
    place.begin = index * place.cols;
  } else {
    place.rows /= count;
    place.begin = index * place.rows * place.cols;
  }
  return place;
}

MatrixRows constant(const ExpertMatrix& place, float value) {
  return {place.role, place.rows, place.cols,
          [value](int64_t, std::span<float> out) { std::ranges::fill(out, value); }};
}

MatrixRows average(std::vector<MatrixRows> matrices) {
  COPPICE_CHECK(!matrices.empty());
  if (matrices.size() == 1) return std::move(matrices.front());
  MatrixRows out = matrices.front();
  out.read = [matrices = std::move(matrices)](int64_t first, std::span<float> values) {
    std::vector<double> sum(values.size(), 0.0);
    for (const MatrixRows& matrix : matrices) {
      matrix.read(first, values);
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += static_cast<double>(values[i]);
    }
    const auto count = static_cast<double>(matrices.size());
    std::ranges::transform(sum, values.begin(), [count](double x) { return static_cast<float>(x / count); });
  };
  return out;
}

void check_float(const Checkpoint::Entry& entry) {
  if (io::is_float(entry.info->dtype)) return;
  throw Error(ErrorCode::kUnsupported, cat("'", entry.info->name, "': stored in ", io::dtype_name(entry.info->dtype),
                                           ", in which coppice cannot compute (use a bf16 checkpoint)"));
}

}  // namespace coppice::convert::detail
