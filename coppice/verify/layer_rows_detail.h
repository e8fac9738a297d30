#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/verify/verify.h"

namespace coppice::verify::detail {

/// A row (or value) of each choice of a router: first the experts', then those of other choices.
struct RowsOfRole {
  std::string name;
  std::vector<float> values;
  size_t cols = 1;

  std::span<const float> row(size_t i) const { return std::span(values).subspan(i * cols, cols); }
};

/// Whether both have the same bits.
bool same_row(std::span<const float> a, std::span<const float> b);

inline constexpr double kEqualRows = 2;  ///< value of nearness() for rows with the same bits

/// All tensors of a layer with a row per expert, before and after: routers, their biases, selection biases, scales.
class LayerRows {
 public:
  struct Pair {
    RowsOfRole before, after;
  };
  /// `selection_bias`: the expansion's factor of the selection biases.
  LayerRows(const families::Model& before, const families::Model& after, int64_t layer, double selection_bias);

  bool has_routers() const;
  /// Whether all rows of the child are bit-equal to the original's.
  bool equal(size_t child, size_t original) const;
  /// The similarity of the child's router row and an original's: kEqualRows if bit-equal, else the cosine.
  double nearness(size_t child, size_t original) const;
  /// Reports the rows of an original that changed.
  void report_changed_original(size_t child, size_t original, VerifyResult& result) const;
  const std::map<families::Role, Pair>& pairs() const { return rows_; }
  size_t experts_before() const { return experts_before_; }

 private:
  std::map<families::Role, Pair> rows_;
  size_t experts_before_;
};

}  // namespace coppice::verify::detail
