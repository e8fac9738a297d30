#include <algorithm>
#include <cmath>
#include <map>

#include "coppice/base/median.h"
#include "coppice/base/text.h"
#include "coppice/verify/copies_detail.h"

namespace coppice::verify::detail {
namespace {

using families::Role;

constexpr size_t kEnoughForTheirMedian = 3;

bool is_gate_or_up(Role role) { return role == Role::kExpertGate || role == Role::kExpertUp; }
bool is_gate_or_up_bias(Role role) { return role == Role::kExpertGateBias || role == Role::kExpertUpBias; }

/// Whether all lines are equal: most methods do not change such a matrix.
bool is_uniform(const MatrixContent& content) {
  const auto all_same = [](const std::vector<uint32_t>& lines) {
    return std::ranges::adjacent_find(lines, std::ranges::not_equal_to()) == lines.end();
  };
  return all_same(content.row_hashes) && all_same(content.col_hashes);
}

int64_t zeros(const std::vector<uint32_t>& lines) { return std::ranges::count(lines, 0u); }

/// Reinitialised rows and columns may include zero ones of the parent, which stay zero.
bool is_usual_count(int64_t changed, int64_t usual, int64_t zero_lines) {
  return changed <= usual && changed + zero_lines >= usual;
}

}  // namespace

Pattern pattern_of(const FoundCopy& copy, size_t matrix) {
  if (copy.of_matrix.empty()) return {};
  const LikenessOf& like = copy.of_matrix[matrix];
  switch (like.kind) {
    case Likeness::kEqual: return {Pattern::kEqual};
    case Likeness::kReordered:
      return {copy.same_units ? Pattern::kUnitsMoved : like.by_columns ? Pattern::kColumnsMoved : Pattern::kRowsMoved};
    case Likeness::kColumns:
    case Likeness::kRows: return {Pattern::kKept, like.rows_changed, like.cols_changed};
    case Likeness::kNone: break;
  }
  return {};
}

void CopyRules::learn(const std::vector<FoundCopy>& copies) {
  copies_ = copies.size();
  usual_.assign(before_.matrices(), std::nullopt);
  for (size_t m = 0; m < usual_.size(); ++m) {
    std::map<Pattern, size_t> counts;
    for (const FoundCopy& copy : copies) ++counts[pattern_of(copy, m)];
    const auto most = std::ranges::max_element(counts, {}, [](const auto& count) { return count.second; });
    if (most != counts.end() && 2 * most->second > copies_) usual_[m] = most->first;
  }
}

bool CopyRules::needs_values(const FoundCopy& copy, size_t matrix) const {
  const Pattern pattern = pattern_of(copy, matrix);
  if (pattern.kind == Pattern::kValues) return true;
  const bool is_known = several_growths_ || (usual_[matrix] && usual_[matrix]->kind == Pattern::kKept);
  return pattern.kind == Pattern::kKept && !is_known;
}

bool CopyRules::has_new_values(const FoundCopy& copy, size_t matrix) const {
  const Pattern::Kind kind = pattern_of(copy, matrix).kind;
  return kind == Pattern::kKept || kind == Pattern::kValues;
}

void CopyRules::report(FoundCopy& copy, size_t matrix, const std::string& what) const {
  copy.problems.push_back(cat("'", after_.name(copy.child, matrix), "': ", families::role_name(after_.role(matrix)),
                              " of expert ", copy.child, " ", what));
}

std::string CopyRules::difference(const FoundCopy& copy, size_t matrix) const {
  const Pattern pattern = pattern_of(copy, matrix);
  const std::string of_parent = cat("that of original ", copy.parent, ", its parent");
  switch (pattern.kind) {
    case Pattern::kEqual: return cat("equals ", of_parent);
    case Pattern::kUnitsMoved:
    case Pattern::kColumnsMoved:
    case Pattern::kRowsMoved: return cat("is ", of_parent, ", in another order");
    case Pattern::kKept:
      return cat("differs from ", of_parent, ", in ", pattern.rows, " rows and ", pattern.cols, " columns");
    case Pattern::kValues: break;
  }
  return cat("differs from ", of_parent, ", in all rows and columns");
}

bool CopyRules::is_usual(const FoundCopy& copy, size_t matrix) const {
  const Pattern pattern = pattern_of(copy, matrix);
  if (!usual_[matrix] || pattern == *usual_[matrix]) return true;
  const Pattern& usual = *usual_[matrix];
  if (usual.kind == Pattern::kValues) return pattern.kind == Pattern::kKept;  // if rounding removed the change
  if (usual.kind != Pattern::kKept || pattern.kind != Pattern::kKept) return false;
  const MatrixContent& parent = before_.content(static_cast<size_t>(copy.parent), matrix);
  return is_usual_count(pattern.rows, usual.rows, zeros(parent.row_hashes)) &&
         is_usual_count(pattern.cols, usual.cols, zeros(parent.col_hashes));
}

/// Every method changes all matrices of an expert or none, unless its share of the columns rounds to 0.
bool CopyRules::is_mixed(const FoundCopy& copy, size_t matrix) const {
  for (size_t m = 0; m < usual_.size(); ++m) {
    if (before_.is_vector(m) || !before_.is_matrix(m) || copy.of_matrix[m].kind != Likeness::kEqual) continue;
    if (is_uniform(before_.content(static_cast<size_t>(copy.parent), m))) continue;
    const bool of_most = copies_ > 1 && usual_[m] == Pattern{Pattern::kEqual} && usual_[matrix].has_value();
    if (!of_most) return true;
  }
  return false;
}

void CopyRules::judge_matrices(FoundCopy& copy) const {
  for (size_t m = 0; m < usual_.size(); ++m) {
    const Pattern pattern = pattern_of(copy, m);
    if (before_.is_vector(m) || pattern.kind == Pattern::kEqual) continue;
    if (pattern.kind == Pattern::kRowsMoved) {
      report(copy, m,
             cat("has the rows of original ", copy.parent, ", its parent, in an order that differs from that of its ",
                 "other matrices (gate, up and down must have their units in the same order)"));
    } else if (several_growths_) {
      continue;
    } else if (!is_usual(copy, m)) {
      report(copy, m, cat(difference(copy, m), ", unlike most copies of the layer"));
    } else if (is_mixed(copy, m)) {
      report(copy, m,
             cat(difference(copy, m), "; other matrices of expert ", copy.child,
                 " are equal, but a method changes all or none"));
    }
  }
}

std::vector<bool> CopyRules::changed_units(const FoundCopy& copy, size_t matrix) const {
  const MatrixContent &is = after_.content(copy.child, matrix),
                      &was = before_.content(static_cast<size_t>(copy.parent), matrix);
  const bool by_rows = after_.role(matrix) != Role::kExpertDown;
  const std::vector<uint32_t>&a = by_rows ? is.row_hashes : is.col_hashes,
        &b = by_rows ? was.row_hashes : was.col_hashes;
  std::vector<bool> changed(a.size());
  for (size_t i = 0; i < a.size(); ++i) changed[i] = a[i] != b[i];
  return changed;
}

/// Checks that the reinitialised units are the same in gate, up and down.
void CopyRules::judge_units(FoundCopy& copy) const {
  std::optional<size_t> first;
  for (size_t m = 0; m < usual_.size(); ++m) {
    const bool kept = usual_[m] && usual_[m]->kind == Pattern::kKept && copy.of_matrix[m].kind == Likeness::kRows;
    if (kept && is_gate_or_up(after_.role(m)) && !first) first = m;
  }
  if (!first) return;
  const std::vector<bool> units = changed_units(copy, *first);
  for (size_t m = 0; m < usual_.size(); ++m) {
    if (!is_gate_or_up(after_.role(m)) && after_.role(m) != Role::kExpertDown) continue;
    if (changed_units(copy, m) == units || is_uniform(before_.content(static_cast<size_t>(copy.parent), m))) continue;
    report(copy, m,
           cat("differs from that of original ", copy.parent, ", its parent, in other units than ",
               families::role_name(after_.role(*first)), " (gate, up and down must change in the same units)"));
  }
}

/// If equal bits show how the units changed, their biases must have changed in the same way.
void CopyRules::judge_biases(FoundCopy& copy) const {
  std::vector<bool> redrawn;
  for (size_t m = 0; m < usual_.size(); ++m) {
    if (before_.is_vector(m)) continue;
    if (needs_values(copy, m)) return;  // their biases are judged by values, too
    if (is_gate_or_up(after_.role(m)) && copy.of_matrix[m].kind == Likeness::kRows) redrawn = changed_units(copy, m);
  }
  for (size_t m = 0; m < usual_.size(); ++m) {
    if (!before_.is_vector(m) || copy.of_matrix[m].kind == Likeness::kEqual) continue;
    const bool has_units = is_gate_or_up_bias(after_.role(m));
    if (has_units && copy.same_units) continue;
    const std::vector<bool> changed = changed_units(copy, m);
    int64_t others = 0;
    for (size_t u = 0; u < changed.size(); ++u)
      others += changed[u] && !(has_units && u < redrawn.size() && redrawn[u]) ? 1 : 0;
    if (others == 0) continue;
    report(copy, m,
           cat("differs from that of original ", copy.parent, ", its parent, in ", others,
               " values, but the weights of these units are equal"));
  }
}

void CopyRules::judge_lengths(std::vector<FoundCopy>& copies, const std::vector<double>& spread) const {
  std::vector<double> all;
  std::vector<std::vector<double>> of_matrix(usual_.size());
  for (const FoundCopy& copy : copies) {
    for (const NearMatrix& near : copy.near) {
      if (near.cosine) all.push_back(near.length);
      of_matrix[near.matrix].push_back(near.length);
    }
  }
  const double of_all = median(all);
  for (FoundCopy& copy : copies) {
    for (const NearMatrix& near : copy.near) {
      const std::vector<double>& alike = of_matrix[near.matrix];
      const bool has_siblings = alike.size() >= kEnoughForTheirMedian;
      const double usual = has_siblings ? median(alike) : of_all;
      const bool too_long = near.cosine && near.length > kLargestFactor * spread[near.matrix];
      const bool is_held = !several_growths_ && (near.cosine || has_siblings);
      if (!too_long && !(is_held && is_out_of_line(near.length, usual, spread[near.matrix]))) continue;
      report(copy, near.matrix,
             cat("has ", number_text(near.length), " times the norm of that of original ", copy.parent,
                 ", its parent; ", number_text(usual), " times is usual in this layer"));
    }
  }
}

void CopyRules::judge(std::vector<FoundCopy>& copies, const std::vector<double>& spread) const {
  for (FoundCopy& copy : copies) {
    if (copy.parent < 0 || !copy.problems.empty()) continue;
    judge_matrices(copy);
    if (copy.problems.empty()) judge_units(copy);
    judge_biases(copy);
  }
  judge_lengths(copies, spread);
}

double spread_of(const std::vector<double>& lengths) {
  double least = 0, most = 0;
  for (const double length : lengths) {
    if (length <= 0 || !std::isfinite(length)) continue;
    least = least == 0 ? length : std::min(least, length);
    most = std::max(most, length);
  }
  return least == 0 ? 1 : most / least;
}

bool is_out_of_line(double length, double usual, double spread) {
  const double most = kOutOfLine * spread;
  return length > most * usual || most * length < usual;
}

}  // namespace coppice::verify::detail
