#include "coppice/upcycle/verify_layer.h"

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
#include "coppice/upcycle/expert_content.h"

namespace coppice::upcycle {
namespace {

using families::ExpertParts;
using families::Model;
using families::Role;

constexpr Role kRowRoles[] = {Role::kRouter, Role::kRouterBias, Role::kSelectionBias, Role::kExpertScale,
                              Role::kAttentionRouter};
constexpr double kRecognised = 0.2;   ///< cosine above which an expert or a router row is said to derive from another
constexpr double kOrthogonal = 0.02;  ///< cosine (as large as rounding to bf16 leaves it) of an orthogonal router row
constexpr double kSameNorm = 0.01;
constexpr double kNearlyAsNear =
    0.2;                            ///< originals this close to the nearest may be meant: a mixture of two is near both
constexpr double kOtherRow = 0.05;  ///< a row this much nearer to another original's has been swapped
constexpr double kSurelyRow = 0.9;

template <class Value>
std::vector<Value> for_each_expert(int64_t count, size_t threads, const std::function<Value(int64_t)>& value) {
  std::vector<Value> values(static_cast<size_t>(count));
  parallel_for(values.size(), threads, [&](size_t i) {
    check_interrupt();
    values[i] = value(static_cast<int64_t>(i));
  });
  return values;
}

/// A row (or value) of each choice that a router has, in fp32: first the experts', then those of what is no expert.
struct Rows {
  std::string name;
  std::vector<float> values;
  size_t cols = 1;

  static std::optional<Rows> read(const Model& model, Role role, int64_t layer) {
    const auto slot =
        std::ranges::find_if(model.slots, [&](const auto& s) { return s.layer == layer && s.role() == role; });
    if (slot == model.slots.end()) return std::nullopt;
    Rows rows{slot->name, model.checkpoint.read_f32(slot->name), 1};
    rows.cols = rows.values.size() / static_cast<size_t>(model.config.router_rows());
    return rows;
  }
  std::span<const float> row(size_t i) const { return std::span(values).subspan(i * cols, cols); }
  std::span<const float> behind(int64_t experts) const {
    return std::span(values).subspan(static_cast<size_t>(experts) * cols);
  }
};

bool same_row(std::span<const float> a, std::span<const float> b) {
  return std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

double norm(std::span<const float> row) {
  double sum = 0;
  for (const float x : row) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

/// The work on one layer, its findings kept between the steps.
class LayerCheck {
 public:
  LayerCheck(const ExpertParts& before, const ExpertParts& after, int64_t layer, size_t threads, VerifyResult& result)
      : parts_before_(before),
        parts_after_(after),
        before_(before.model()),
        after_(after.model()),
        layer_(layer),
        threads_(threads),
        result_(result) {}

  void run() {
    originals_ = digests(parts_before_);
    grown_ = digests(parts_after_);
    router_before_ = Rows::read(before_, Role::kRouter, layer_);
    router_after_ = Rows::read(after_, Role::kRouter, layer_);
    if (!router_before_ || !router_after_) {
      result_.problems.push_back(cat("layer ", layer_, ": it has experts and no router"));
      return;
    }
    parents_.assign(grown_.size(), -1);
    find_unchanged();
    find_changed();
    count_matrices();
    check_originals();
    check_router();
    for (const Role role : {Role::kRouterBias, Role::kSelectionBias}) check_biases(role);
    for (const Role role : {Role::kExpertScale, Role::kAttentionRouter}) check_copies(role);
    for (const Role role : kRowRoles) check_behind(role);
    result_.parents[layer_] = parents_;
  }

 private:
  std::vector<ExpertDigest> digests(const ExpertParts& parts) const {
    return for_each_expert<ExpertDigest>(parts.model().config.num_experts, threads_,
                                         [&](int64_t expert) { return expert_digest(parts, layer_, expert); });
  }

  /// The expert's first tensor, or its place in the stacked one.
  std::string expert_name(const ExpertParts& parts, size_t expert) const {
    const families::TensorSlot& slot = *parts.of(layer_, static_cast<int64_t>(expert)).at(0).slot;
    return slot.expert >= 0 ? slot.name.str() : cat(slot.name, "[", expert, "]");
  }

  /// How near the child's router row is to an original's; the same bytes are nearest.
  double row_nearness(size_t child, size_t original) const {
    const auto a = router_after_->row(child), b = router_before_->row(original);
    return same_row(a, b) ? 2.0 : cosine(a, b);
  }

  /// Of several possible parents: the one whose router row is nearest, then one not found yet, then the first.
  size_t pick(size_t child, const std::vector<size_t>& candidates) const {
    return *std::ranges::max_element(candidates, {}, [&](size_t original) {
      const bool is_new = std::ranges::find(parents_, static_cast<int64_t>(original)) == parents_.end();
      return std::tuple(row_nearness(child, original), is_new, -static_cast<int64_t>(original));
    });
  }

  void find_unchanged() {
    std::map<ExpertDigest, std::vector<size_t>> holders;
    for (size_t p = 0; p < originals_.size(); ++p) holders[originals_[p]].push_back(p);
    for (size_t child = 0; child < grown_.size(); ++child) {
      const auto found = holders.find(grown_[child]);
      if (found != holders.end()) parents_[child] = static_cast<int64_t>(pick(child, found->second));
    }
  }

  void find_changed() {
    const std::vector<int64_t> changed = without_parent();
    if (changed.empty()) return;
    if (expert_sample(parts_before_, layer_, 0).empty()) {  // only bytes can be compared
      for (const int64_t child : changed) report_unknown(static_cast<size_t>(child));
      return;
    }
    const auto originals = for_each_expert<std::vector<float>>(
        before_.config.num_experts, threads_,
        [&](int64_t expert) { return expert_sample(parts_before_, layer_, expert); });
    const auto children = for_each_expert<std::vector<float>>(
        static_cast<int64_t>(changed.size()), threads_,
        [&](int64_t i) { return expert_sample(parts_after_, layer_, changed[static_cast<size_t>(i)]); });
    for (size_t i = 0; i < changed.size(); ++i) {
      std::vector<double> near;
      for (const std::vector<float>& original : originals) near.push_back(cosine(children[i], original));
      const double nearest = *std::ranges::max_element(near);
      if (!(nearest > kRecognised)) continue;
      std::vector<size_t> candidates;
      for (size_t p = 0; p < near.size(); ++p) {
        if (near[p] > kRecognised && near[p] >= nearest - kNearlyAsNear) candidates.push_back(p);
      }
      const auto child = static_cast<size_t>(changed[i]);
      const size_t parent = pick(child, candidates);
      parents_[child] = static_cast<int64_t>(parent);
      result_.smallest_cosine = std::min(result_.smallest_cosine, near[parent]);
    }
    find_by(unit_signature);
    find_by(value_signature);
    for (const int64_t child : without_parent()) report_unknown(static_cast<size_t>(child));
  }

  /// Experts that hold what a parent does in another order.
  void find_by(uint64_t (*signature)(const ExpertParts&, int64_t layer, int64_t expert)) {
    const std::vector<int64_t> unknown = without_parent();
    if (unknown.empty()) return;
    const auto originals = for_each_expert<uint64_t>(
        before_.config.num_experts, threads_, [&](int64_t expert) { return signature(parts_before_, layer_, expert); });
    const auto children = for_each_expert<uint64_t>(static_cast<int64_t>(unknown.size()), threads_, [&](int64_t i) {
      return signature(parts_after_, layer_, unknown[static_cast<size_t>(i)]);
    });
    for (size_t i = 0; i < unknown.size(); ++i) {
      std::vector<size_t> candidates;
      for (size_t p = 0; p < originals.size(); ++p) {
        if (originals[p] == children[i]) candidates.push_back(p);
      }
      const auto child = static_cast<size_t>(unknown[i]);
      if (!candidates.empty()) parents_[child] = static_cast<int64_t>(pick(child, candidates));
    }
  }

  void report_unknown(size_t child) {
    result_.problems.push_back(cat("'", expert_name(parts_after_, child),
                                   "': no parent recognised; the expert is like none of the ", originals_.size(),
                                   " originals of layer ", layer_));
  }

  std::vector<int64_t> without_parent() const {
    std::vector<int64_t> children;
    for (size_t child = 0; child < parents_.size(); ++child) {
      if (parents_[child] < 0) children.push_back(static_cast<int64_t>(child));
    }
    return children;
  }

  void count_matrices() {
    for (size_t child = 0; child < grown_.size(); ++child) {
      if (parents_[child] < 0) continue;
      const ExpertDigest& parent = originals_[static_cast<size_t>(parents_[child])];
      for (size_t i = 0; i < parent.of_part.size(); ++i) {
        const bool same = grown_[child].of_part.at(i) == parent.of_part[i];
        ++(same ? result_.experts_original : result_.experts_changed);
      }
    }
  }

  void check_originals() {
    std::vector<bool> there(originals_.size(), false);
    for (size_t child = 0; child < grown_.size(); ++child) {
      if (parents_[child] < 0) continue;
      const auto parent = static_cast<size_t>(parents_[child]);
      if (grown_[child] == originals_[parent]) there[parent] = true;
    }
    for (size_t p = 0; p < there.size(); ++p) {
      if (!there[p])
        result_.problems.push_back(
            cat("'", expert_name(parts_before_, p), "': this original expert is not in the grown model unchanged"));
    }
  }

  void check_router() {
    const std::vector<std::string> problems =
        for_each_expert<std::string>(after_.config.num_experts, threads_, [&](int64_t child) {
          return parents_[static_cast<size_t>(child)] < 0 ? std::string() : row_problem(static_cast<size_t>(child));
        });
    for (size_t child = 0; child < problems.size(); ++child) {
      if (!problems[child].empty()) result_.problems.push_back(problems[child]);
      if (parents_[child] < 0 || !problems[child].empty()) continue;
      const bool same = same_row(router_after_->row(child), router_before_->row(static_cast<size_t>(parents_[child])));
      ++(same ? result_.router_rows_equal : result_.router_rows_changed);
    }
  }

  std::string row_problem(size_t child) const {
    const auto parent = static_cast<size_t>(parents_[child]);
    const double near = row_nearness(child, parent);
    if (near == 2.0) return {};
    const std::string& name = router_after_->name;
    for (size_t p = 0; p < originals_.size(); ++p) {
      const double other = row_nearness(child, p);
      if (other >= kSurelyRow && other > near + kOtherRow) {
        return cat("'", name, "': row ", child, " is that of original ", p, ", but expert ", child,
                   " is a child of original ", parent);
      }
    }
    if (near > kRecognised) return {};
    // The router method `orthogonal` keeps the parent's norm and nothing else.
    const double length = norm(router_after_->row(child)) / norm(router_before_->row(parent));
    if (std::abs(near) < kOrthogonal && std::abs(length - 1) < kSameNorm) return {};
    return cat("'", name, "': row ", child, " is not near that of original ", parent, ", whose child expert ", child,
               " is (cosine ", number_text(near), ")");
  }

  void check_biases(Role role) {
    const auto before = Rows::read(before_, role, layer_), after = Rows::read(after_, role, layer_);
    if (!before || !after) return;
    for (size_t child = 0; child < parents_.size(); ++child) {
      if (!std::isfinite(after->values[child])) {
        result_.problems.push_back(cat("'", after->name, "': the value of expert ", child, " is not finite"));
      } else if (parents_[child] >= 0 && after->values[child] != before->values[static_cast<size_t>(parents_[child])]) {
        ++result_.biases_changed;
      }
    }
  }

  /// Rows that no method touches.
  void check_copies(Role role) {
    const auto before = Rows::read(before_, role, layer_), after = Rows::read(after_, role, layer_);
    if (!before || !after) return;
    for (size_t child = 0; child < parents_.size(); ++child) {
      if (parents_[child] < 0) continue;
      if (!same_row(after->row(child), before->row(static_cast<size_t>(parents_[child])))) {
        result_.problems.push_back(cat("'", after->name, "': row ", child, " is not that of original ", parents_[child],
                                       ", whose child expert ", child, " is"));
      }
    }
  }

  /// Choices that are no experts stay behind the experts as they were.
  void check_behind(Role role) {
    const auto before = Rows::read(before_, role, layer_), after = Rows::read(after_, role, layer_);
    if (!before || !after) return;
    const auto was = before->behind(before_.config.num_experts), is = after->behind(after_.config.num_experts);
    if (was.size() != is.size() || !same_row(was, is)) {
      result_.problems.push_back(
          cat("'", after->name, "': the rows behind those of the ", after_.config.num_experts, " experts changed"));
    }
  }

  const ExpertParts& parts_before_;
  const ExpertParts& parts_after_;
  const Model& before_;
  const Model& after_;
  const int64_t layer_;
  const size_t threads_;
  VerifyResult& result_;
  std::vector<ExpertDigest> originals_, grown_;
  std::optional<Rows> router_before_, router_after_;
  std::vector<int64_t> parents_;
};

}  // namespace

void verify_layer(const ExpertParts& before, const ExpertParts& after, int64_t layer, size_t threads,
                  VerifyResult& result) {
  LayerCheck(before, after, layer, threads, result).run();
}

}  // namespace coppice::upcycle
