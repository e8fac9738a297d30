#pragma once

// What an expert holds, matrix by matrix, in forms that show whose child it is without any record of how it was made.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coppice/models/expert_parts.h"

namespace coppice::verify {

/// What stored values of an expert have been multiplied by.
struct ExpertFactors {
  double down = 1, down_bias = 1;
};

/// One matrix (or bias, or what goes with a matrix) of one expert, wherever it lies.
struct ExpertMatrixRef {
  models::ExpertPart part;
  models::ExpertMatrix place;  ///< rows 0: all bytes of the part, which is only ever copied
  families::Role role{};
  std::string name;  ///< the tensor's, with the expert's number where it stacks them

  bool is_matrix() const { return place.rows > 0; }
  bool is_vector() const { return place.cols <= 1; }
};

/// Every matrix of an expert by rising role; models that stack their experts otherwise have the same list.
std::vector<ExpertMatrixRef> matrices_of(const models::ExpertParts& parts, int64_t layer, int64_t expert);

/// A matrix in [out, in] order as stored, times its factor; other parts as they are.
///
/// Memory   the matrix.
std::vector<std::byte> stored_bytes(const ExpertMatrixRef& matrix, const ExpertFactors& factors = {});

/// What can be recognised of a matrix bit for bit.
struct MatrixContent {
  uint64_t hash = 0;                             ///< of all of it
  std::vector<uint32_t> row_hashes, col_hashes;  ///< 0: every bit is 0; none of what is no matrix
  int64_t elements = 0;
};
/// Memory   the matrix and 4 bytes a row and column.
MatrixContent content_of(const ExpertMatrixRef& matrix, const ExpertFactors& factors = {});

/// How two matrices at the same place are alike, the surest first.
enum class Likeness {
  kEqual,      ///< bit for bit
  kColumns,    ///< some columns, at their places
  kRows,       ///< some rows, at their places
  kReordered,  ///< the same columns or rows in another order
  kNone,
};
struct LikenessOf {
  Likeness kind = Likeness::kNone;
  int64_t rows_changed = 0, cols_changed = 0;
  double share = 0;         ///< of the columns or rows that are equal
  bool by_columns = false;  ///< kReordered: the columns are the same ones
};
LikenessOf likeness(const MatrixContent& child, const MatrixContent& original);

/// Up to 4,096 values of a matrix at positions that depend on its size alone, in fp32; empty if they are no F32, BF16 or
/// F16.
std::vector<float> sample_of(const ExpertMatrixRef& matrix, const ExpertFactors& factors = {});
/// Euclidean norm, accumulated in fp64.
double norm(std::span<const float> values);
/// True if every value is a number; also of values that are no F32, BF16 or F16.
bool is_finite(const ExpertMatrixRef& matrix);

/// Cosine of two vectors, accumulated in fp64. Two zero vectors: 1; one of them: 0; NaN where a value is.
double cosine(std::span<const float> a, std::span<const float> b);

/// True if both tensors have the same dtype, shape and bytes.
///
/// Memory   a window of 8 MiB of each.
bool same_tensor(const io::Checkpoint::Entry& a, const io::Checkpoint::Entry& b);

}  // namespace coppice::verify
