#pragma once

// A matrix that is read or computed by rows, so that it need not be in memory as a whole.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "coppice/families/family.h"
#include "coppice/matrix/mean_std.h"

namespace coppice::matrix {

/// The expert's intermediate width f: the rows of gate and up, the columns of down. Not for down's bias.
inline int64_t units_of(families::Role role, int64_t rows, int64_t cols) {
  return role == families::Role::kExpertDown ? cols : rows;
}

/// Fills `out`, [out.size() / cols, cols] fp32, with the rows from `first` on. May be called from any thread, for any
/// rows in any order.
using RowFill = std::function<void(int64_t first, std::span<float> out)>;

/// One matrix of one expert, [rows, cols] = [out, in] in any layout of the file; elements are numbered in that order. A
/// bias is a matrix with one column.
struct MatrixRows {
  families::Role role;
  int64_t rows = 0, cols = 0;
  RowFill read;
  std::string subject = {};  ///< name in errors: its tensor, or layer, expert and role

  int64_t units() const { return units_of(role, rows, cols); }
  std::vector<float> all() const {
    std::vector<float> values(static_cast<size_t>(rows * cols));
    read(0, values);
    return values;
  }

  /// Calls visit(first, values) for all rows in order, with as many rows at a time as fit into the processor's cache.
  template <class Visit>
  void for_each_block(Visit visit) const {
    const int64_t count = block_rows(cols);
    std::vector<float> block;
    for (int64_t first = 0; first < rows; first += count) {
      block.resize(static_cast<size_t>(std::min(count, rows - first) * cols));
      read(first, block);
      visit(first, std::span<const float>(block));
    }
  }

  static int64_t block_rows(int64_t cols) { return std::max<int64_t>(1, kBlockElements / std::max<int64_t>(1, cols)); }

 private:
  static constexpr int64_t kBlockElements = int64_t{1} << 16;  // 256 KiB
};

/// The same matrix of another original expert.
using RowsSource = std::function<MatrixRows(uint32_t expert)>;

/// The matrix times a factor, in fp64 and rounded to fp32.
inline MatrixRows scaled(MatrixRows matrix, double factor) {
  if (factor == 1) return matrix;
  matrix.read = [read = std::move(matrix.read), factor](int64_t first, std::span<float> out) {
    read(first, out);
    for (float& x : out) x = static_cast<float>(factor * x);
  };
  return matrix;
}

inline MeanStd mean_std(const MatrixRows& matrix) {
  return mean_std<float>(
      [&](auto add) { matrix.for_each_block([&](int64_t, std::span<const float> rows) { add(rows); }); });
}

}  // namespace coppice::matrix
