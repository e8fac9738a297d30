#pragma once

#include <compare>
#include <optional>
#include <string>
#include <vector>

#include "coppice/verify/originals_detail.h"

namespace coppice::verify::detail {

/// How a matrix with other values is like the parent's.
struct NearMatrix {
  size_t matrix = 0;
  std::optional<double> cosine;  ///< of sampled values, where no bits tell
  double length = 0;             ///< its norm over that of the parent's
};

/// How a copy is like its parent, matrix by matrix.
struct FoundCopy {
  size_t child = 0;
  int64_t parent = -1;
  std::vector<LikenessOf> of_matrix;  ///< empty without a parent
  bool same_units = false;            ///< gate, up and down (and their biases) hold the parent's units in one new order
  std::vector<NearMatrix> near;
  std::vector<std::string> problems;
};

/// What a method has done to a matrix.
struct Pattern {
  enum Kind : uint8_t { kEqual, kUnitsMoved, kColumnsMoved, kRowsMoved, kKept, kValues };
  Kind kind = kValues;
  int64_t rows = 0, cols = 0;  ///< of kKept: those that changed

  auto operator<=>(const Pattern&) const = default;
};
Pattern pattern_of(const FoundCopy& copy, size_t matrix);

/// Holds the copies of a layer to each other: those of one growth arise by one method.
class CopyRules {
 public:
  /// `several_growths`: each may have had a method of its own.
  CopyRules(const ExpertContents& before, const ExpertContents& after, bool several_growths)
      : before_(before), after_(after), several_growths_(several_growths) {}

  /// Learns from the bits of all copies, those without a parent too, what most of them show.
  void learn(const std::vector<FoundCopy>& copies);
  /// True if no bits tell whether the matrix is right: its values have to be near.
  bool needs_values(const FoundCopy& copy, size_t matrix) const;
  /// True if some of its values are not the parent's: they have to be as large as others.
  bool has_new_values(const FoundCopy& copy, size_t matrix) const;
  /// Adds to each copy what is wrong with it; `spread[matrix]`: the largest norm of an original over the smallest.
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

/// Lengths this many times longer or shorter than usual are out of line, where originals are equally long.
inline constexpr double kOutOfLine = 1.5;
/// No method makes a matrix or row this many times longer: factors and noise reach to 10 times, of short ones to more.
inline constexpr double kLargestFactor = 20;
/// The largest over the smallest, zeros left out; 1 of none.
double spread_of(const std::vector<double>& lengths);
/// True if `length` is not near `usual`, given how much those of originals differ.
bool is_out_of_line(double length, double usual, double spread);

}  // namespace coppice::verify::detail
