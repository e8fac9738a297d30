#include "coppice/verify/recognise.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <tuple>

#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/verify/copied_rows_detail.h"
#include "coppice/verify/copies_detail.h"
#include "coppice/verify/layer_rows_detail.h"
#include "coppice/verify/originals_detail.h"
#include "coppice/verify/router_groups_detail.h"

namespace coppice::verify {
namespace {

using detail::CopyRules;
using detail::ExpertContents;
using detail::FoundCopy;
using detail::LayerRows;
using detail::NearMatrix;
using detail::Pattern;
using families::Role;
using models::ExpertTensors;

constexpr double kRecognised = 0.2;  ///< least cosine by which a matrix or a router row counts as derived from another
constexpr double kTooShort = 5;  ///< and at least this many standard deviations of the cosine of random values, but ...
constexpr double kSurely = 0.5;  ///< ... this is enough for any length
/// Originals this close to the most similar one are candidates too: a mixture of two is similar to both.
constexpr double kNearlyAsNear = 0.2;
constexpr double kReorderedShare = 0.5;  ///< weight of reordered columns or rows relative to equal ones

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

class Recognition {
 public:
  Recognition(const ExpertTensors& before, const ExpertTensors& after, int64_t layer, const GrowthFactors& factors,
              bool several_growths, size_t threads, VerifyResult& result)
      : before_model_(before.model()),
        after_model_(after.model()),
        before_(before, layer, factors.experts, threads),
        after_(after, layer, {}, threads),
        rows_(before.model(), after.model(), layer, factors.selection_bias),
        several_growths_(several_growths),
        rules_(before_, after_, several_growths),
        layer_(layer),
        threads_(threads),
        result_(result) {}

  void run() {
    if (!rows_.has_routers()) {
      result_.problems.push_back(cat("layer ", layer_, ": has experts but no router"));
      return;
    }
    parents_ = detail::find_originals(before_, after_, rows_, result_);
    is_original_.resize(parents_.size());
    for (size_t child = 0; child < parents_.size(); ++child) is_original_[child] = parents_[child] >= 0;
    find_parents();
    const size_t unknown = result_.not_recognised.size();
    report_copies();
    detail::check_copied_rows(rows_, parents_, is_original_, several_growths_, result_);
    // Copies are counted only if content shows surely whose children they are.
    std::vector<int64_t> sure = parents_;
    for (size_t child = 0; child < sure.size() && unknown < result_.not_recognised.size(); ++child) {
      if (!is_original_[child]) sure[child] = -1;
    }
    detail::check_router_groups(before_model_.config, after_model_.config, layer_, sure, result_);
    result_.parents[layer_] = parents_;
  }

 private:
  using Samples = std::vector<std::vector<float>>;  // sampled values of an expert, by matrix

  void find_parents() {
    std::vector<size_t> children;
    for (size_t child = 0; child < parents_.size(); ++child) {
      if (!is_original_[child]) children.push_back(child);
    }
    copies_ = for_each<FoundCopy>(children.size(), threads_, [&](size_t i) { return compare_bits(children[i]); });
    rules_.learn(copies_);
    std::vector<double> spread(before_.matrices(), 1);
    if (!std::ranges::all_of(copies_, [&](const FoundCopy& copy) { return is_settled(copy); })) {
      const auto samples = for_each<Samples>(before_.count(), threads_, [&](size_t p) { return before_.samples(p); });
      for (size_t m = 0; m < spread.size(); ++m) {
        std::vector<double> lengths;
        for (const Samples& original : samples) lengths.push_back(norm(original[m]));
        spread[m] = detail::spread_of(lengths);
      }
      parallel_for(copies_.size(), threads_, [&](size_t i) {
        check_interrupt();
        if (!is_settled(copies_[i])) compare_values(samples, copies_[i]);
      });
    }
    for (FoundCopy& copy : copies_) {
      parents_[copy.child] = copy.parent;
      if (copy.parent >= 0) check_values(copy);
    }
    rules_.judge(copies_, spread);
  }

  bool is_settled(const FoundCopy& copy) const {
    if (copy.parent < 0) return false;
    for (size_t m = 0; m < before_.matrices(); ++m) {
      if (!before_.is_vector(m) && rules_.has_new_values(copy, m)) return false;
    }
    return true;
  }

  /// Finds the parent with which the copy shares most bits.
  FoundCopy compare_bits(size_t child) const {
    std::vector<std::vector<LikenessOf>> likes;
    std::vector<double> weight;
    for (size_t p = 0; p < before_.count(); ++p) {
      auto& of_p = likes.emplace_back();
      double sum = 0;
      for (size_t m = 0; m < before_.matrices(); ++m) {
        const LikenessOf like = of_p.emplace_back(likeness(after_.content(child, m), before_.content(p, m)));
        if (before_.is_vector(m)) continue;  // biases have few values, or only zeros
        sum += like.kind == Likeness::kReordered ? kReorderedShare : like.share;
      }
      weight.push_back(sum);
    }
    FoundCopy found{.child = child};
    const double most = *std::ranges::max_element(weight);
    if (most <= 0) return found;
    std::vector<size_t> candidates;
    for (size_t p = 0; p < weight.size(); ++p) {
      if (weight[p] == most) candidates.push_back(p);
    }
    const size_t parent = pick(child, candidates);
    found.parent = static_cast<int64_t>(parent);
    found.of_matrix = likes[parent];
    found.same_units = has_same_units(child, parent);
    for (size_t m = 0; m < before_.matrices(); ++m) {
      if (before_.is_vector(m) || found.of_matrix[m].kind == Likeness::kEqual) continue;
      for (size_t p = 0; p < likes.size(); ++p) {
        const bool mixed = likes[p][m].kind == Likeness::kEqual ||
                           (likes[p][m].kind < Likeness::kNone && found.of_matrix[m].kind == Likeness::kNone);
        if (!mixed) continue;
        found.problems.push_back(cat("'", after_.name(child, m), "': ", families::role_name(after_.role(m)),
                                     " of expert ", child, " is of original ", p,
                                     ", but its other matrices are of original ", parent));
        break;
      }
    }
    return found;
  }

  /// Whether gate, up and down have the same units in the same order.
  bool has_same_units(size_t child, size_t original) const {
    std::vector<uint64_t> is = after_.units(child), was = before_.units(original);
    std::ranges::sort(is);
    std::ranges::sort(was);
    return !is.empty() && is == was;
  }

  /// Compares matrices without equal bits by sampled values.
  void compare_values(const std::vector<Samples>& samples, FoundCopy& copy) const {
    const Samples own = after_.samples(copy.child);
    const bool any_parent = copy.parent < 0;
    if (any_parent) {
      const std::vector<size_t> candidates = near_in_all(own, samples);
      if (candidates.empty()) return;
      const size_t parent = pick(copy.child, candidates);
      copy.parent = static_cast<int64_t>(parent);
      for (size_t m = 0; m < before_.matrices(); ++m)
        copy.of_matrix.push_back(likeness(after_.content(copy.child, m), before_.content(parent, m)));
    }
    const auto parent = static_cast<size_t>(copy.parent);
    const auto is_changed_bias = [&](size_t m) {
      return before_.is_vector(m) && copy.of_matrix[m].kind != Likeness::kEqual;
    };
    bool by_values = false;
    for (size_t m = 0; m < before_.matrices(); ++m)
      by_values = by_values || (!before_.is_vector(m) && rules_.needs_values(copy, m));
    for (size_t m = 0; m < before_.matrices(); ++m) {
      const double was = norm(samples[parent][m]), length = was > 0 ? norm(own[m]) / was : 1;
      const bool is_judged = before_.is_vector(m) ? by_values && is_changed_bias(m) : rules_.needs_values(copy, m);
      if (!is_judged) {
        if (!before_.is_vector(m) && rules_.has_new_values(copy, m)) copy.near.push_back({m, std::nullopt, length});
        continue;
      }
      const double near = own[m].empty() ? 0 : cosine(own[m], samples[parent][m]);
      if (near >= least_cosine(own[m].size()) && !own[m].empty()) {
        copy.near.push_back({m, near, length});
      } else if (copy.problems.empty() || !any_parent) {
        copy.problems.push_back(cat("'", after_.name(copy.child, m), "': ", families::role_name(after_.role(m)),
                                    " of expert ", copy.child,
                                    " is not similar to that of any original, but its other matrices are of original ",
                                    parent, " (cosine ", number_text(near), ")"));
      }
    }
  }

  /// Originals to which every matrix is similar, almost as similar as to the best one.
  std::vector<size_t> near_in_all(const Samples& own, const std::vector<Samples>& samples) const {
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

  /// Chooses from several possible parents: the one with the most similar router row, then one without a copy yet, then
  /// the first.
  size_t pick(size_t child, const std::vector<size_t>& candidates) const {
    return *std::ranges::max_element(candidates, {}, [&](size_t original) {
      return std::tuple(rows_.nearness(child, original), -static_cast<int64_t>(original));
    });
  }

  /// Checks for values that no method produces.
  void check_values(FoundCopy& found) const {
    const size_t child = found.child;
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
                   " is zero, but not in original ", parent, ", its parent"));
      }
    }
  }

  void report_copies() {
    int64_t sure = 0;
    for (const FoundCopy& copy : copies_) {
      const bool is_near =
          std::ranges::all_of(copy.near, [](const NearMatrix& near) { return near.cosine.value_or(1) >= kSurely; });
      sure += copy.parent >= 0 && is_near ? 1 : 0;
    }
    const bool are_recognised = 2 * sure > std::ssize(copies_);
    for (size_t child = 0; child < parents_.size(); ++child) {
      if (is_original_[child]) result_.experts_original += static_cast<int64_t>(before_.parts());
    }
    for (const FoundCopy& copy : copies_) {
      if (copy.parent >= 0) {
        count(copy);
      } else {
        const std::string unknown =
            cat("'", after_.name(copy.child, 0), "': no parent recognised; expert ", copy.child,
                " is not similar to any of the ", before_.count(), " originals of layer ", layer_);
        if (are_recognised) {
          result_.problems.push_back(unknown);
        } else {
          result_.not_recognised.push_back(unknown);
          ++result_.unknown_experts;
        }
      }
      std::ranges::copy(copy.problems, std::back_inserter(result_.problems));
    }
  }

  void count(const FoundCopy& copy) {
    result_.experts_original += static_cast<int64_t>(before_.parts_equal(copy.of_matrix));
    result_.experts_changed += static_cast<int64_t>(before_.parts() - before_.parts_equal(copy.of_matrix));
    Likeness worst = Likeness::kEqual;
    for (size_t m = 0; m < copy.of_matrix.size(); ++m) {
      const Likeness kind = copy.of_matrix[m].kind;
      if (before_.is_vector(m)) {
        const bool is_moved = copy.same_units && after_.role(m) != Role::kExpertDownBias;
        result_.only_alike.biases += kind != Likeness::kEqual && !is_moved ? 1 : 0;
        continue;
      }
      worst = std::max(worst, kind);
      const Pattern::Kind pattern = detail::pattern_of(copy, m).kind;
      result_.only_alike.matrices += pattern == Pattern::kKept || pattern == Pattern::kValues ? 1 : 0;
      result_.only_alike.column_orders += pattern == Pattern::kColumnsMoved ? 1 : 0;
    }
    ++result_.copies_by_likeness[static_cast<size_t>(worst)];
    for (const NearMatrix& near : copy.near)
      result_.smallest_cosine = std::min(result_.smallest_cosine, near.cosine.value_or(1));
  }

  const families::Model& before_model_;
  const families::Model& after_model_;
  const ExpertContents before_, after_;
  const LayerRows rows_;
  const bool several_growths_;
  CopyRules rules_;
  const int64_t layer_;
  const size_t threads_;
  VerifyResult& result_;
  std::vector<int64_t> parents_;
  std::vector<bool> is_original_;
  std::vector<FoundCopy> copies_;
};

}  // namespace

void recognise_layer(const ExpertTensors& before, const ExpertTensors& after, int64_t layer,
                     const GrowthFactors& factors, bool several_growths, size_t threads, VerifyResult& result) {
  Recognition(before, after, layer, factors, several_growths, threads, result).run();
}

}  // namespace coppice::verify
