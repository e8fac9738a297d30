#pragma once

// The contents of an expert, matrix by matrix, in forms that show whose child it is without a lineage.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coppice/models/expert_tensors.h"

namespace coppice::verify {

/// The factors of an expert's stored values.
struct ExpertFactors {
  double down = 1, down_bias = 1;
};

/// One matrix (or bias, or companion tensor) of one expert, in any layout.
struct ExpertMatrixRef {
  models::ExpertTensor tensor;
  models::ExpertMatrix place;  ///< rows 0: all bytes of the tensor, which is always copied
  families::Role role{};
  std::string name;  ///< the tensor's name, with the expert's number if it is stacked

  bool is_matrix() const { return place.rows > 0; }
  bool is_vector() const { return place.cols <= 1; }
};

/// Every matrix of an expert by rising role; the list is the same for every layout.
std::vector<ExpertMatrixRef> matrices_of(const models::ExpertTensors& tensors, int64_t layer, int64_t expert);

/// A matrix in [out, in] order in its stored dtype, times its factor; other tensors unchanged.
///
/// Memory   the matrix.
std::vector<std::byte> stored_bytes(const ExpertMatrixRef& matrix, const ExpertFactors& factors = {});

/// Hashes of a matrix by which equal bits are recognised.
struct MatrixContent {
  uint64_t hash = 0;                             ///< of the whole matrix
  std::vector<uint32_t> row_hashes, col_hashes;  ///< 0: every bit is 0; empty if it is not a matrix
  int64_t elements = 0;
};
/// Memory   the matrix and 4 bytes per row and column.
MatrixContent content_of(const ExpertMatrixRef& matrix, const ExpertFactors& factors = {});

/// How two matrices at the same place are alike, most certain first.
enum class Likeness {
  kEqual,      ///< bit-equal
  kColumns,    ///< some equal columns at the same places
  kRows,       ///< some equal rows at the same places
  kReordered,  ///< the same columns or rows in another order
  kNone,
};
struct LikenessOf {
  Likeness kind = Likeness::kNone;
  int64_t rows_changed = 0, cols_changed = 0;
  double share = 0;         ///< share of the columns or rows that are equal
  bool by_columns = false;  ///< kReordered: equal columns, not rows
};
LikenessOf likeness(const MatrixContent& child, const MatrixContent& original);

/// Up to 4,096 values of a matrix in fp32, at positions that depend only on its size; empty if they are not F32, BF16
/// or F16.
std::vector<float> sample_of(const ExpertMatrixRef& matrix, const ExpertFactors& factors = {});
/// Euclidean norm, accumulated in fp64.
double norm(std::span<const float> values);
/// Whether every value is finite; true for other dtypes than F32, BF16 and F16.
bool is_finite(const ExpertMatrixRef& matrix);

/// Cosine of two vectors, accumulated in fp64. 1 for two zero vectors, 0 for one, NaN if a value is NaN.
double cosine(std::span<const float> a, std::span<const float> b);

/// Whether both tensors have the same dtype, shape and bytes.
///
/// Memory   a window of 8 MiB of each.
bool same_tensor(const io::Checkpoint::Entry& a, const io::Checkpoint::Entry& b);

}  // namespace coppice::verify
