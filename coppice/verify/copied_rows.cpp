#include <algorithm>
#include <cmath>
#include <optional>

#include "coppice/base/median.h"
#include "coppice/base/text.h"
#include "coppice/verify/copied_rows_detail.h"
#include "coppice/verify/copies_detail.h"
#include "coppice/verify/expert_content.h"

namespace coppice::verify::detail {
namespace {

using families::Role;

constexpr double kRecognised = 0.2;   ///< cosine above which a row counts as derived from another
constexpr double kSurely = 0.5;       ///< cosine above which it is surely derived
constexpr double kOrthogonal = 0.02;  ///< upper limit of the cosine of an orthogonal router row after rounding to bf16
constexpr double kSameNorm = 0.01;
constexpr double kOtherRow = 0.05;  ///< a row whose cosine with another original's is larger by this much was swapped
constexpr double kSurelyRow = 0.99;
constexpr double kProbablyRow = 0.9;  ///< if the row is less similar to its parent's than most rows
/// A bias whose change differs from the usual change this many times more than most is damaged.
constexpr double kFarChange = 16;
constexpr double kRounding = 0x1p-7;  ///< relative error of rounding to bf16 twice

struct Copy {
  size_t child, parent;
};

/// The copies of one layer in one tensor of rows.
class CopiedRows {
 public:
  CopiedRows(const LayerRows& rows, const LayerRows::Pair& pair, std::vector<Copy> copies, bool several_growths,
             VerifyResult& result)
      : rows_(rows), pair_(pair), copies_(std::move(copies)), several_growths_(several_growths), result_(result) {
    for (const Copy& copy : copies_) {
      if (!is_equal(copy)) changed_.push_back(copy);
    }
  }

  /// Checks the scales, which all methods copy.
  void check_scales() const {
    for (const Copy& copy : changed_) report(copy, "is not");
  }

  void check_routers() const {
    std::vector<std::string> unlike, near;
    const double usual = median(lengths()), usually_near = median(nearnesses());
    const double spread = spread_of(norms_before());
    const auto sure = std::ranges::count_if(copies_, [&](const Copy& copy) { return is_sure(copy); });
    const bool are_sure = 2 * sure > std::ssize(copies_);
    const bool is_held = are_sure && !several_growths_;
    size_t of_others = 0;
    for (const Copy& copy : changed_) {
      bool is_of_other = false;
      std::string problem = row_problem(copy, usually_near, is_of_other);
      of_others += is_of_other ? 1 : 0;
      if (!problem.empty()) {
        unlike.push_back(std::move(problem));
      } else if (are_mostly_equal()) {
        report(copy, "differs from", ", but most copies of the layer are equal to theirs");
      } else if (const double length = length_of(copy);
                 length > kLargestFactor * spread || (is_held && is_out_of_line(length, usual, spread))) {
        report(copy, cat("has ", number_text(length), " times the norm of"),
               cat("; ", number_text(usual), " times is usual in this layer"));
      } else {
        ++result_.only_alike.router_rows;
      }
    }
    // If most copies changed in the same way, a method may have done it; rows of other originals count only if there
    // are several.
    const bool may_be_right = of_others == 0 ? !are_sure : unlike.size() == copies_.size() && copies_.size() > 1;
    if (may_be_right) result_.unknown_rows += std::ssize(unlike);
    std::ranges::move(unlike, std::back_inserter(may_be_right ? result_.not_recognised : result_.problems));
  }

  void check_biases() const {
    const auto zeros = std::ranges::count_if(copies_, [&](const Copy& copy) { return value(copy) == 0; });
    const bool to_zero = !several_growths_ && 2 * zeros > std::ssize(copies_);
    const UsualChange usual = usual_change();
    for (const Copy& copy : changed_) {
      ++result_.biases_changed;
      if (!std::isfinite(value(copy))) {
        result_.problems.push_back(cat("'", pair_.after.name, "': the value of expert ", copy.child, " is not finite"));
        continue;
      }
      result_.largest_bias_change = std::max(result_.largest_bias_change, std::abs(change(copy)));
      if (to_zero && value(copy) != 0) {
        report(copy, "differs from", ", but it is 0 in most copies of the layer");
      } else if (!to_zero && are_mostly_equal()) {
        report(copy, "differs from", ", but most copies of the layer are equal to theirs");
      } else if (!to_zero && !several_growths_ && is_far_change(copy, usual)) {
        report(copy, cat("is ", number_text(value(copy)), ", which is far from"), "; most biases changed differently");
      } else {
        ++result_.only_alike.biases;
      }
    }
  }

 private:
  std::span<const float> is(const Copy& copy) const { return pair_.after.row(copy.child); }
  std::span<const float> was(const Copy& copy) const { return pair_.before.row(copy.parent); }
  bool is_equal(const Copy& copy) const { return same_row(is(copy), was(copy)); }
  float value(const Copy& copy) const { return is(copy)[0]; }
  double change(const Copy& copy) const { return double{is(copy)[0]} - double{was(copy)[0]}; }
  bool are_mostly_equal() const { return !several_growths_ && 2 * changed_.size() < copies_.size(); }

  void report(const Copy& copy, const std::string& how, const std::string& more = {}) const {
    result_.problems.push_back(cat("'", pair_.after.name, "': row ", copy.child, " ", how, " that of original ",
                                   copy.parent, ", the parent of expert ", copy.child, more));
  }

  double length_of(const Copy& copy) const {
    const double before = norm(was(copy));
    return before > 0 ? norm(is(copy)) / before : 1;
  }
  std::vector<double> lengths() const {
    std::vector<double> out;
    for (const Copy& copy : changed_) out.push_back(length_of(copy));
    return out;
  }
  std::vector<double> nearnesses() const {
    std::vector<double> out;
    for (const Copy& copy : changed_) out.push_back(rows_.nearness(copy.child, copy.parent));
    return out;
  }
  std::vector<double> norms_before() const {
    std::vector<double> out;
    for (size_t p = 0; p < rows_.experts_before(); ++p) out.push_back(norm(pair_.before.row(p)));
    return out;
  }

  /// The router method `orthogonal` keeps only the parent's norm.
  bool is_orthogonal(const Copy& copy, double near) const {
    return std::abs(near) < kOrthogonal && std::abs(length_of(copy) - 1) < kSameNorm;
  }
  bool is_sure(const Copy& copy) const {
    const double near = rows_.nearness(copy.child, copy.parent);
    return near > kSurely || is_orthogonal(copy, near);
  }

  /// Empty if a method could have made this row from its parent's.
  std::string row_problem(const Copy& copy, double usually_near, bool& is_of_other) const {
    const std::string& name = pair_.after.name;
    size_t changed = 0;
    for (size_t i = 0; i < is(copy).size(); ++i) changed += is(copy)[i] == was(copy)[i] ? 0 : 1;
    if (2 * changed < is(copy).size()) {  // every method changes a whole row or nothing
      is_of_other = true;
      return cat("'", name, "': row ", copy.child, " differs in ", changed, " values from that of original ",
                 copy.parent, ", its parent");
    }
    const double near = rows_.nearness(copy.child, copy.parent);
    for (size_t p = 0; p < rows_.experts_before(); ++p) {
      const double other = rows_.nearness(copy.child, p);
      if (other < (near < usually_near - kOtherRow ? kProbablyRow : kSurelyRow) || other <= near + kOtherRow) continue;
      is_of_other = true;
      return cat("'", name, "': row ", copy.child, " is that of original ", p, ", but expert ", copy.child,
                 " is a child of original ", copy.parent);
    }
    if (near > kRecognised || is_orthogonal(copy, near)) return {};
    return cat("'", name, "': row ", copy.child, " is not similar to that of original ", copy.parent,
               ", its parent (cosine ", number_text(near), ")");
  }

  /// The usual change of copies' biases, and the largest deviation that does not count as damage.
  struct UsualChange {
    double change, allowed;
  };
  UsualChange usual_change() const {
    std::vector<double> changes;
    for (const Copy& copy : changed_) changes.push_back(change(copy));
    const double usual = median(changes);
    for (double& x : changes) x = std::abs(x - usual);
    return {usual, kFarChange * median(changes) + kRounding * std::abs(usual)};
  }

  /// Whether the bias is none of the biases before and changed differently from most.
  bool is_far_change(const Copy& copy, const UsualChange& usual) const {
    const auto before = std::span(pair_.before.values).first(rows_.experts_before());
    const auto [least, most] = std::ranges::minmax(before);
    if (value(copy) >= least && value(copy) <= most) return false;
    return std::abs(change(copy) - usual.change) > usual.allowed;
  }

  const LayerRows& rows_;
  const LayerRows::Pair& pair_;
  std::vector<Copy> copies_, changed_;
  const bool several_growths_;
  VerifyResult& result_;
};

}  // namespace

void check_copied_rows(const LayerRows& rows, const std::vector<int64_t>& parents, const std::vector<bool>& is_original,
                       bool several_growths, VerifyResult& result) {
  std::vector<Copy> copies;
  for (size_t child = 0; child < parents.size(); ++child) {
    if (parents[child] >= 0 && !is_original[child]) copies.push_back({child, static_cast<size_t>(parents[child])});
  }
  for (const auto& [role, pair] : rows.pairs()) {
    const auto behind = [](const RowsOfRole& of, size_t experts) {
      return std::span(of.values).subspan(experts * of.cols);
    };
    if (!same_row(behind(pair.before, rows.experts_before()), behind(pair.after, parents.size()))) {
      result.problems.push_back(
          cat("'", pair.after.name, "': rows after those of the ", parents.size(), " experts changed"));
    }
    const CopiedRows copied(rows, pair, copies, several_growths, result);
    if (role == Role::kRouterBias || role == Role::kSelectionBias) {
      copied.check_biases();
    } else if (role == Role::kRouter) {
      for (size_t child = 0; child < parents.size(); ++child) {
        if (parents[child] < 0) continue;
        const bool same = rows.nearness(child, static_cast<size_t>(parents[child])) == kEqualRows;
        ++(same ? result.router_rows_equal : result.router_rows_changed);
      }
      copied.check_routers();
    } else {
      copied.check_scales();
    }
  }
}

}  // namespace coppice::verify::detail
