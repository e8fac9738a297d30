#pragma once

#include <compare>
#include <optional>
#include <string>
#include <vector>

#include "coppice/verify/originals_detail.h"

namespace coppice::verify::detail {

/// How similar a matrix with changed values is to the parent's.
struct NearMatrix {
  size_t matrix = 0;
  std::optional<double> cosine;  ///< of sampled values, if no bits are equal
  double length = 0;             ///< its norm divided by that of the parent's
};

/// How similar a copy is to its parent, matrix by matrix.
struct FoundCopy {
  size_t child = 0;
  int64_t parent = -1;
  std::vector<LikenessOf> of_matrix;  ///< empty without a parent
  bool same_units = false;  ///< gate, up and down (and their biases) have the parent's units in the same new order
  std::vector<NearMatrix> near;
  std::vector<std::string> problems;
};

/// How a method changed a matrix.
struct Pattern {
  enum Kind : uint8_t { kEqual, kUnitsMoved, kColumnsMoved, kRowsMoved, kKept, kValues };
  Kind kind = kValues;
  int64_t rows = 0, cols = 0;  ///< for kKept: number of changed rows and columns

  auto operator<=>(const Pattern&) const = default;
};
Pattern pattern_of(const FoundCopy& copy, size_t matrix);

/// Compares the copies of a layer with each other, because one expansion makes all of them by one method.
class CopyRules {
 public:
  /// `several_growths`: several expansions, each with its own method.
  CopyRules(const ExpertContents& before, const ExpertContents& after, bool several_growths)
      : before_(before), after_(after), several_growths_(several_growths) {}

  /// Finds what most copies have in common, from the bits of all copies, including those without a parent.
  void learn(const std::vector<FoundCopy>& copies);
  /// Whether equal bits cannot decide if the matrix is right, so that its values must be similar.
  bool needs_values(const FoundCopy& copy, size_t matrix) const;
  /// Whether some of its values are new, so that their size must be like that of others.
  bool has_new_values(const FoundCopy& copy, size_t matrix) const;
  /// Adds the problems of each copy; `spread[matrix]` is the largest norm of an original divided by the smallest.
  void judge(std::vector<FoundCopy>& copies, const std::vector<double>& spread) const;

 private:
  void judge_matrices(FoundCopy& copy) const;
  void judge_units(FoundCopy& copy) const;
  void judge_biases(FoundCopy& copy) const;
  void judge_lengths(std::vector<FoundCopy>& copies, const std::vector<double>& spread) const;
  std::string difference(const FoundCopy& copy, size_t matrix) const;
  bool is_usual(const FoundCopy& copy, size_t matrix) const;
  bool is_mixed(const FoundCopy& copy, size_t matrix) const;
  std::vector<bool> changed_units(const FoundCopy& copy, size_t matrix) const;
  void report(FoundCopy& copy, size_t matrix, const std::string& what) const;

  const ExpertContents& before_;
  const ExpertContents& after_;
  const bool several_growths_;
  size_t copies_ = 0;
  std::vector<std::optional<Pattern>> usual_;
};

/// Norms this many times larger or smaller than usual are implausible, if the originals' norms are equal.
inline constexpr double kOutOfLine = 1.5;
/// No method increases the norm of a matrix or row this many times: factors and noise reach 10 times, and more for
/// small ones.
inline constexpr double kLargestFactor = 20;
/// The largest divided by the smallest value, without zeros; 1 if there are none.
double spread_of(const std::vector<double>& lengths);
/// Whether `length` is implausible beside `usual`, given how much those of the originals differ.
bool is_out_of_line(double length, double usual, double spread);

}  // namespace coppice::verify::detail
