#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "coppice/families/match.h"
#include "coppice/verify/verify.h"

namespace coppice::verify::detail {

/// A row (or value) of each choice that a router has: first the experts', then those of what is not an expert.
struct RowsOfRole {
  std::string name;
  std::vector<float> values;
  size_t cols = 1;

  std::span<const float> row(size_t i) const { return std::span(values).subspan(i * cols, cols); }
};

/// True if both have the same bits.
bool same_row(std::span<const float> a, std::span<const float> b);

inline constexpr double kEqualRows = 2;  ///< nearness of rows with the same bits

/// Everything of a layer that has a row for each expert, before and after: routers, their biases, selection biases,
/// scales.
class LayerRows {
 public:
  struct Pair {
    RowsOfRole before, after;
  };
  /// `selection_bias`: what the expansion multiplied the selection biases by.
  LayerRows(const families::Model& before, const families::Model& after, int64_t layer, double selection_bias);

  bool has_routers() const;
  /// True if all rows of the child are the original's, bit for bit.
  bool equal(size_t child, size_t original) const;
  /// How near the child's router row is to an original's: kEqualRows, or else the cosine.
  double nearness(size_t child, size_t original) const;
  /// Names the rows of an original that changed.
  void report_changed_original(size_t child, size_t original, VerifyResult& result) const;
  const std::map<families::Role, Pair>& pairs() const { return rows_; }
  size_t experts_before() const { return experts_before_; }

 private:
  std::map<families::Role, Pair> rows_;
  size_t experts_before_;
};

}  // namespace coppice::verify::detail
