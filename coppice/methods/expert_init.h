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

/// A whole matrix of one expert in memory.
struct ExpertView {
  families::Role role;
  int64_t rows = 0, cols = 0;
  std::span<float> values;

  int64_t units() const { return matrix::units_of(role, rows, cols); }
  std::span<float> row(int64_t r) const {
    return values.subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols));
  }
};

/// Identifies a child and creates its random streams.
struct ChildKey {
  uint64_t seed = 0;
  int64_t layer = 0;
  uint32_t parent = 0, copy = 1;
  int64_t num_experts = 0;  ///< E

  Rng tensor_rng(families::Role role, uint32_t purpose) const;  ///< a stream of its own for each matrix
  Rng expert_rng(uint32_t purpose) const;                       ///< the same stream for all matrices of the expert
  uint32_t next() const;  ///< the expert after the parent (the first after the last); requires E > 1
  uint32_t partner()
      const;  ///< a random one of the other E - 1 experts, the same for all matrices of the child; requires E > 1
};

struct ExpertInit {
  std::string_view name;
  /// Returns the child's rows. This call computes what needs the whole matrix, such as its standard deviation or a
  /// decomposition; the result may read rows of parent and partner again.
  matrix::RowFill (*child)(const matrix::MatrixRows& parent, const ChildKey& key, const matrix::RowsSource& partner,
                           const Params& params);
  /// Applies the method to one of Adam's two moments of the same matrix, after the optimizer strategy. It is called for
  /// each and is not told which: it may move values and set them to 0, but not change signs or sizes, because the second
  /// moment is a mean of squares. nullptr: no change.
  void (*apply_moment)(ExpertView moment, const ChildKey& key, const Params& params);
  std::span<const ParamSpec> params;
  bool same_bytes;              ///< the child is byte-equal to its parent
  bool same_function;           ///< child computes the parent's function
  bool draws = true;            ///< uses random numbers: depends on seed and copy number
  bool needs_partner = false;   ///< reads other experts: cannot be used for models with one expert
  bool changes_biases = false;  ///< also applied to the expert's biases; otherwise a child has its parent's
  bool holds_matrix = false;    ///< `child` computes all rows at once and holds a few fp32 copies of the matrix
  std::string_view summary;
  std::string_view source;  ///< paper and section, or "this project"; never empty
};
std::span<const ExpertInit> expert_inits();
const ExpertInit& expert_init(std::string_view name);  // Throws Error{kUsage} with the nearest

}  // namespace coppice::methods
