#include "coppice/verify/recognise.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <tuple>

#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/verify/layer_rows_detail.h"
#include "coppice/verify/originals_detail.h"

namespace coppice::verify {
namespace {

using detail::ExpertContents;
using detail::LayerRows;
using families::ExpertParts;
using families::Role;

constexpr double kRecognised = 0.2;  ///< least cosine by which a matrix or a router row is said to derive from another
constexpr double kTooShort = 5;      ///< and this many standard deviations of that of random values, but ...
constexpr double kSurely = 0.5;      ///< ... this is enough for any length
constexpr double kNearlyAsNear =
    0.2;  ///< originals this close to the nearest may be meant: a mixture of two is near both
constexpr double kReorderedShare = 0.5;  ///< what columns or rows in another order count beside equal ones

template <class Value>
std::vector<Value> for_each(size_t count, size_t threads, const std::function<Value(size_t)>& value) {
  std::vector<Value> values(count);
  parallel_for(count, threads, [&](size_t i) {
    check_interrupt();
    values[i] = value(i);
  });
  return values;
}

double least_cosine(size_t values) {
  return std::min(kSurely, std::max(kRecognised, kTooShort / std::sqrt(static_cast<double>(values))));
}

/// How a copy is like its parent, matrix by matrix.
struct Found {
  int64_t parent = -1;
  std::vector<LikenessOf> of_matrix;
  std::vector<double> cosines;  ///< of matrices that no bits tell
  std::vector<std::string> problems;
};

class Recognition {
 public:
  Recognition(const ExpertParts& before, const ExpertParts& after, int64_t layer, const GrowthFactors& factors,
              size_t threads, VerifyResult& result)
      : before_(before, layer, factors.experts, threads),
        after_(after, layer, {}, threads),
        rows_(before.model(), after.model(), layer, factors.selection_bias),
        layer_(layer),
        threads_(threads),
        result_(result) {}

  void run() {
    if (!rows_.has_routers()) {
      result_.problems.push_back(cat("layer ", layer_, ": it has experts and no router"));
      return;
    }
    parents_ = detail::find_originals(before_, after_, rows_, result_);
    is_original_.resize(parents_.size());
    for (size_t child = 0; child < parents_.size(); ++child) is_original_[child] = parents_[child] >= 0;
    find_parents();
    check_alike();
    rows_.check_copies(parents_, is_original_, result_);
    result_.parents[layer_] = parents_;
  }

 private:
  void find_parents() {
    std::vector<size_t> copies;
    for (size_t child = 0; child < parents_.size(); ++child) {
      if (!is_original_[child]) copies.push_back(child);
    }
    std::vector<std::vector<std::vector<float>>> samples;  // of every original, by matrix
    const auto by_bits = for_each<Found>(copies.size(), threads_, [&](size_t i) { return compare_bits(copies[i]); });
    const bool needs_samples = std::ranges::any_of(by_bits, [](const Found& f) { return !is_settled(f); });
    if (needs_samples)
      samples = for_each<std::vector<std::vector<float>>>(before_.count(), threads_,
                                                          [&](size_t original) { return before_.samples(original); });
    found_.resize(parents_.size());
    for (size_t i = 0; i < copies.size(); ++i) {
      check_interrupt();
      Found found = by_bits[i];
      if (!is_settled(found)) compare_values(copies[i], samples, found);
      parents_[copies[i]] = found.parent;
      if (found.parent >= 0) check_values(copies[i], found);
      found_[copies[i]] = std::move(found);
    }
    for (size_t child = 0; child < parents_.size(); ++child) account(child);
  }

  static bool is_settled(const Found& found) {
    return found.parent >= 0 &&
           std::ranges::none_of(found.of_matrix, [](const LikenessOf& like) { return like.kind == Likeness::kNone; });
  }

  /// The parent that most bits of the copy are of.
  Found compare_bits(size_t child) const {
    std::vector<std::vector<LikenessOf>> likes;
    std::vector<double> weight;
    for (size_t p = 0; p < before_.count(); ++p) {
      auto& of_p = likes.emplace_back();
      double sum = 0;
      for (size_t m = 0; m < before_.matrices(); ++m) {
        const LikenessOf like = of_p.emplace_back(likeness(after_.content(child, m), before_.content(p, m)));
        if (before_.is_vector(m)) continue;  // biases are few values, or zeros
        sum += like.kind == Likeness::kReordered ? kReorderedShare : like.share;
      }
      weight.push_back(sum);
    }
    Found found;
    const double most = *std::ranges::max_element(weight);
    if (most <= 0) return found;
    std::vector<size_t> candidates;
    for (size_t p = 0; p < weight.size(); ++p) {
      if (weight[p] == most) candidates.push_back(p);
    }
    const size_t parent = pick(child, candidates);
    found.parent = static_cast<int64_t>(parent);
    found.of_matrix = likes[parent];
    for (size_t m = 0; m < before_.matrices(); ++m) {
      if (before_.is_vector(m) || found.of_matrix[m].kind == Likeness::kEqual) continue;
      for (size_t p = 0; p < likes.size(); ++p) {
        const bool mixed = likes[p][m].kind == Likeness::kEqual ||
                           (likes[p][m].kind < Likeness::kNone && found.of_matrix[m].kind == Likeness::kNone);
        if (!mixed) continue;
        found.problems.push_back(cat("'", after_.name(child, m), "': ", families::role_name(after_.role(m)),
                                     " of expert ", child, " is of original ", p,
                                     ", and its other matrices are of original ", parent));
        break;
      }
    }
    return found;
  }

  /// Matrices that no bits tell, by sampled values.
  void compare_values(size_t child, const std::vector<std::vector<std::vector<float>>>& samples, Found& found) const {
    const auto own = after_.samples(child);
    const bool any_parent = found.parent < 0;
    if (any_parent) {
      const std::vector<size_t> candidates = near_in_all(own, samples);
      if (candidates.empty()) return report_unknown(child, found);
      const size_t parent = pick(child, candidates);
      found.parent = static_cast<int64_t>(parent);
      for (size_t m = 0; m < before_.matrices(); ++m)
        found.of_matrix.push_back(likeness(after_.content(child, m), before_.content(parent, m)));
    }
    const auto parent = static_cast<size_t>(found.parent);
    for (size_t m = 0; m < before_.matrices(); ++m) {
      if (found.of_matrix[m].kind != Likeness::kNone) continue;
      const double near = own[m].empty() ? 0 : cosine(own[m], samples[parent][m]);
      if (near >= least_cosine(own[m].size()) && !own[m].empty()) {
        found.cosines.push_back(near);
      } else if (found.problems.empty() || !any_parent) {
        found.problems.push_back(cat("'", after_.name(child, m), "': ", families::role_name(after_.role(m)),
                                     " of expert ", child, " is like that of no original, and its other matrices are ",
                                     "of original ", parent, " (cosine ", number_text(near), ")"));
      }
    }
  }

  /// Originals to which every matrix is near, of each almost as near as to any.
  std::vector<size_t> near_in_all(const std::vector<std::vector<float>>& own,
                                  const std::vector<std::vector<std::vector<float>>>& samples) const {
    std::vector<bool> near(samples.size(), true);
    bool any = false;
    for (size_t m = 0; m < before_.matrices(); ++m) {
      if (before_.is_vector(m) || own[m].empty()) continue;
      any = true;
      std::vector<double> cosines;
      for (const auto& original : samples) cosines.push_back(cosine(own[m], original[m]));
      const double least = std::max(least_cosine(own[m].size()), *std::ranges::max_element(cosines) - kNearlyAsNear);
      for (size_t p = 0; p < near.size(); ++p) near[p] = near[p] && cosines[p] >= least;
    }
    std::vector<size_t> out;
    for (size_t p = 0; any && p < near.size(); ++p) {
      if (near[p]) out.push_back(p);
    }
    return out;
  }

  /// Of several possible parents: the one whose router row is nearest, then one not found yet, then the first.
  size_t pick(size_t child, const std::vector<size_t>& candidates) const {
    return *std::ranges::max_element(candidates, {}, [&](size_t original) {
      return std::tuple(rows_.nearness(child, original), -static_cast<int64_t>(original));
    });
  }

  void report_unknown(size_t child, Found& found) const {
    found.problems.push_back(cat("'", after_.name(child, 0), "': no parent recognised; the expert is like none of the ",
                                 before_.count(), " originals of layer ", layer_));
  }

  /// What no method leaves behind, whatever it is like.
  void check_values(size_t child, Found& found) const {
    const auto parent = static_cast<size_t>(found.parent);
    for (size_t m = 0; m < before_.matrices(); ++m) {
      const LikenessOf& like = found.of_matrix[m];
      if (like.kind == Likeness::kEqual) continue;
      const auto report = [&](const std::string& what) {
        found.problems.push_back(cat("'", after_.name(child, m), "': ", what));
      };
      if (!is_finite(after_.matrix(child, m)) && is_finite(before_.matrix(parent, m)))
        report(cat("NaN or infinity in ", families::role_name(after_.role(m)), " of expert ", child));
      if (before_.is_vector(m)) continue;
      if (like.rows_changed == 1 && like.cols_changed == 1)
        report(cat(families::role_name(after_.role(m)), " of expert ", child, " differs in one value from that of ",
                   "original ", parent, ", its parent"));
      for (const auto& [what, was, is] :
           {std::tuple("row", &before_.content(parent, m).row_hashes, &after_.content(child, m).row_hashes),
            std::tuple("column", &before_.content(parent, m).col_hashes, &after_.content(child, m).col_hashes)}) {
        if (std::ranges::count(*is, 0u) <= std::ranges::count(*was, 0u)) continue;
        report(cat("a ", what, " of ", families::role_name(after_.role(m)), " of expert ", child,
                   " is zero, which is not in original ", parent, ", its parent"));
      }
    }
  }

  /// The copies of one growth arise by one method, which changes as many rows and columns of each; none changes a few
  /// rows in a few columns.
  void check_alike() {
    for (size_t m = 0; m < before_.matrices(); ++m) {
      std::map<std::pair<int64_t, int64_t>, int64_t> counts;
      int64_t copies = 0;
      for (const Found& found : found_) {
        if (found.parent < 0 || found.of_matrix[m].kind > Likeness::kRows) continue;
        ++counts[{found.of_matrix[m].rows_changed, found.of_matrix[m].cols_changed}];
        ++copies;
      }
      const auto most = std::ranges::max_element(counts, {}, [](const auto& count) { return count.second; });
      if (most == counts.end() || 2 * most->second <= copies) continue;
      for (size_t child = 0; child < found_.size(); ++child) check_alike(child, m, most->first);
    }
    for (const Found& found : found_)
      for (const std::string& problem : found.problems) result_.problems.push_back(problem);
  }

  void check_alike(size_t child, size_t m, std::pair<int64_t, int64_t> usual) {
    Found& found = found_[child];
    if (found.parent < 0 || found.of_matrix[m].kind > Likeness::kRows || !found.problems.empty()) return;
    const LikenessOf& like = found.of_matrix[m];
    if (std::pair(like.rows_changed, like.cols_changed) == usual || like.kind == Likeness::kEqual) return;
    const MatrixContent& content = after_.content(child, m);
    const auto is_local = [](int64_t changed, size_t all) { return 2 * changed < static_cast<int64_t>(all); };
    if (!is_local(like.rows_changed, content.row_hashes.size()) ||
        !is_local(like.cols_changed, content.col_hashes.size()))
      return;  // by the method of another growth, perhaps
    found.problems.push_back(cat("'", after_.name(child, m), "': ", families::role_name(after_.role(m)), " of expert ",
                                 child, " differs from that of original ", found.parent, " in ", like.rows_changed,
                                 " rows and ", like.cols_changed, " columns; in most copies of the layer it is ",
                                 usual.first, " and ", usual.second));
  }

  void account(size_t child) {
    if (parents_[child] < 0) return;
    if (is_original_[child]) {
      result_.experts_original += static_cast<int64_t>(before_.parts());
      return;
    }
    const Found& found = found_[child];
    result_.experts_original += static_cast<int64_t>(before_.parts_equal(found.of_matrix));
    result_.experts_changed += static_cast<int64_t>(before_.parts() - before_.parts_equal(found.of_matrix));
    Likeness worst = Likeness::kEqual;
    for (size_t m = 0; m < found.of_matrix.size(); ++m) {
      if (!before_.is_vector(m)) worst = std::max(worst, found.of_matrix[m].kind);
    }
    ++result_.copies_by_likeness[static_cast<size_t>(worst)];
    for (const double near : found.cosines) result_.smallest_cosine = std::min(result_.smallest_cosine, near);
  }

  const ExpertContents before_, after_;
  const LayerRows rows_;
  const int64_t layer_;
  const size_t threads_;
  VerifyResult& result_;
  std::vector<int64_t> parents_;
  std::vector<bool> is_original_;
  std::vector<Found> found_;
};

}  // namespace

void recognise_layer(const ExpertParts& before, const ExpertParts& after, int64_t layer, const GrowthFactors& factors,
                     size_t threads, VerifyResult& result) {
  Recognition(before, after, layer, factors, threads, result).run();
}

}  // namespace coppice::verify
