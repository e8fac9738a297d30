#include "coppice/matrix/unit_slice.h"

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::matrix {
namespace {

int64_t cut(const MatrixRows& whole, int64_t units, int64_t count) {
  if (units % count == 0) return units / count;
  throw Error(ErrorCode::kShape, cat(whole.subject.empty() ? families::role_name(whole.role) : whole.subject, ": ",
                                     units, " units cannot be cut into ", count, " equal parts (choose a divisor)"));
}

}  // namespace

MatrixRows unit_slice(const MatrixRows& whole, int64_t index, int64_t count, double factor) {
  MatrixRows part = whole;
  int64_t first_row = 0;
  size_t first_col = 0;
  if (whole.role == families::Role::kExpertDown) {
    part.cols = cut(whole, whole.cols, count);
    first_col = static_cast<size_t>(index * part.cols);
  } else if (whole.role != families::Role::kExpertDownBias) {
    part.rows = cut(whole, whole.rows, count);
    first_row = index * part.rows;
  }
  part.read = [whole, first_row, first_col, factor, width = static_cast<size_t>(part.cols)](int64_t first,
                                                                                            std::span<float> out) {
    const size_t num_rows = out.size() / width;
    std::vector<float> rows(num_rows * static_cast<size_t>(whole.cols));
    whole.read(first_row + first, rows);
    for (size_t r = 0; r < num_rows; ++r) {
      const auto from = std::span(rows).subspan(r * static_cast<size_t>(whole.cols) + first_col, width);
      std::ranges::transform(from, out.begin() + static_cast<std::ptrdiff_t>(r * width),
                             [factor](float x) { return static_cast<float>(factor * x); });
    }
  };
  return part;
}

}  // namespace coppice::matrix
