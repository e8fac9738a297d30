#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/base/rng.h"
#include "coppice/families/family.h"
#include "coppice/matrix/matrix_rows.h"
#include "coppice/methods/params.h"

namespace coppice::methods {

/// A whole matrix of one expert, as MatrixRows gives it by rows.
struct ExpertView {
  families::Role role;
  int64_t rows = 0, cols = 0;
  std::span<float> values;

  int64_t units() const { return matrix::units_of(role, rows, cols); }
  std::span<float> row(int64_t r) const {
    return values.subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols));
  }
};

/// Whose child this is; makes the random streams.
struct ChildKey {
  uint64_t seed = 0;
  int64_t layer = 0;
  uint32_t parent = 0, copy = 1;
  int64_t num_experts = 0;  ///< E

  Rng tensor_rng(families::Role role, uint32_t purpose) const;  ///< own to one matrix
  Rng expert_rng(uint32_t purpose) const;                       ///< shared by the expert's matrices
  uint32_t next() const;                                        ///< the expert after the parent, around the end; E > 1
  uint32_t partner() const;  ///< one of the other E - 1 experts, the same for all of the child's matrices; E > 1
};

struct ExpertInit {
  std::string_view name;
  /// The child's rows. What must be known of the whole matrix, its standard deviation or all of a decomposition, is
  /// found out in this call; rows of parent and partner may be read again by the result.
  matrix::RowFill (*child)(const matrix::MatrixRows& parent, const ChildKey& key, const matrix::RowsSource& partner,
                           const Params& params);
  /// What the method means for Adam's moments of the same matrix, after the optimizer strategy: moved with the units,
  /// or 0 where redrawn. nullptr: nothing.
  void (*apply_moment)(ExpertView moment, const ChildKey& key, const Params& params);
  std::span<const ParamSpec> params;
  bool same_bytes;              ///< child equals parent byte for byte
  bool same_function;           ///< child computes the parent's function
  bool draws = true;            ///< random: depends on seed and copy number
  bool needs_partner = false;   ///< reads other experts: not for models of one expert
  bool changes_biases = false;  ///< called for the expert's biases too; else a child has its parent's
  bool holds_matrix = false;    ///< `child` computes all rows at once and keeps them: some fp32 copies of the matrix
  std::string_view summary, source;
};
std::span<const ExpertInit> expert_inits();
const ExpertInit& expert_init(std::string_view name);  // Throws Error{kUsage} with the nearest

}  // namespace coppice::methods
