#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "coppice/grow/never_chosen_detail.h"

namespace coppice::grow::detail {
namespace {

using families::GateFunction;
using methods::Child;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kRounding = 0x1p-20;     // relative rounding error of a score in fp32
constexpr double kNormRounding = 1.0625;  // normalised inputs of low precision may have a slightly larger norm
// A new expert whose bias is lower by less than this counts as having its parent's score.
constexpr double kLowered = 0.01;

bool are_equal(const std::vector<bool>& as_parent, const std::vector<Child>& children, bool originals_only) {
  for (size_t i = 0; i < children.size(); ++i) {
    if (!as_parent[i] && (children[i].copy == 0 || !originals_only)) return false;
  }
  return true;
}

bool all_equal(const LayerRouting& layer, bool originals_only) {
  for (const GrownRows* rows :
       {&layer.weight, layer.bias ? &*layer.bias : nullptr, layer.selection_bias ? &*layer.selection_bias : nullptr}) {
    if (rows != nullptr && !are_equal(rows->as_parent, layer.layer->children, originals_only)) return false;
  }
  return true;
}

class Choice {
 public:
  explicit Choice(const LayerRouting& layer) : layer_(layer), bias_(*layer.choice_bias()) {
    const bool by_selection_bias = layer.selection_bias.has_value();
    const families::Routing& routing = layer.routing;
    const bool by_logit = routing.gate == GateFunction::kTopKSoftmax || (by_selection_bias && routing.bias_on_logits);
    // The square root of softplus rises more slowly than the logit: what holds for logits holds for it.
    is_bounded_ = !by_logit && routing.gate != GateFunction::kSqrtSoftplusTopK && by_selection_bias;  // 0 to 1
    is_sigmoid_ = !by_logit && routing.gate == GateFunction::kSigmoidTopK;
    measure_rows();
  }

  const std::vector<Child>& children() const { return layer_.layer->children; }

  /// Whether the child's row equals its parent's, and also its router bias if experts are chosen by another bias.
  bool has_parents_logit(size_t child) const {
    return layer_.weight.as_parent[child] && (!layer_.bias || &*layer_.bias == &bias_ || layer_.bias->as_parent[child]);
  }

  /// Whether child `a` has a higher score than child `b` for every token.
  bool outscores(size_t a, size_t b) const {
    const double above = double{bias_.after[a]} - double{bias_.after[b]};
    const double size = std::max({1.0, std::abs(double{bias_.after[a]}), std::abs(double{bias_.after[b]})});
    return above > gap(b, a) + kRounding * size;
  }

  bool is_lowered(size_t child) const {
    return has_parents_logit(child) &&
           double{bias_.after[child]} < double{bias_.before[children()[child].parent]} - kLowered;
  }

 private:
  /// By how much the score of a, without biases, can exceed that of b.
  double gap(size_t a, size_t b) const {
    if (!is_bounded_ && is_sigmoid_) return kInfinity;  // sigmoids of large logits are all 1
    const bool alike = has_parents_logit(a) && has_parents_logit(b);
    if (alike && children()[a].parent == children()[b].parent) return 0;
    const bool one_bias = !layer_.bias || &*layer_.bias == &bias_;
    const double logits = alike && one_bias ? reach_[children()[a].parent] + reach_[children()[b].parent] : kInfinity;
    if (!is_bounded_) return logits;
    return is_sigmoid_ ? std::tanh(logits / 4) : 1.0;
  }

  /// Computes the largest possible logit of each row.
  void measure_rows() {
    const auto cols = static_cast<size_t>(layer_.weight.cols);
    reach_.assign(static_cast<size_t>(layer_.experts_before), kInfinity);
    if (layer_.input_scale.size() != cols || layer_.weight.before.empty()) return;
    for (size_t e = 0; e < reach_.size(); ++e) {
      const auto row = layer_.weight.row_before(e);
      double sum = 0;
      for (size_t c = 0; c < cols; ++c) sum += std::pow(double{row[c]} * double{layer_.input_scale[c]}, 2);
      reach_[e] = kNormRounding * std::sqrt(static_cast<double>(cols) * sum);
    }
  }

  const LayerRouting& layer_;
  const GrownRows& bias_;
  bool is_bounded_ = false, is_sigmoid_ = false;
  std::vector<double> reach_;
};

bool groups_limit(const families::Routing& routing) {
  return routing.num_groups > 1 && routing.top_groups < routing.num_groups;
}

/// Whether every group has the originals of one earlier group.
bool groups_keep_originals(const LayerRouting& layer) {
  const int64_t size_before = layer.experts_before / layer.routing.num_groups;
  const int64_t size_after = layer.experts_after / layer.routing.num_groups;
  std::vector<int64_t> group_of(static_cast<size_t>(layer.routing.num_groups), -1);
  for (size_t i = 0; i < layer.layer->children.size(); ++i) {
    const Child& child = layer.layer->children[i];
    if (child.copy > 0) continue;
    int64_t& group = group_of[i / static_cast<size_t>(size_after)];
    if (group >= 0 && group != child.parent / size_before) return false;
    group = child.parent / size_before;
  }
  return true;
}

/// Whether enough originals always score above the new expert, in its own group and in all others that may be chosen
/// with it.
bool is_never_chosen(const LayerRouting& layer, const Choice& choice, size_t child) {
  const auto& children = choice.children();
  const families::Routing& routing = layer.routing;
  const int64_t groups = groups_limit(routing) ? routing.num_groups : 1;
  const auto group_size = static_cast<size_t>(layer.experts_after / groups);
  std::vector<int64_t> better(static_cast<size_t>(groups), 0);
  for (size_t i = 0; i < children.size(); ++i) {
    if (children[i].copy == 0 && choice.outscores(i, child)) ++better[i / group_size];
  }
  const size_t own = child / group_size;
  int64_t least = better[own];
  if (groups > 1) {
    const bool best_two = routing.group_score == families::GroupScore::kBestTwo;
    if (better[own] < (best_two ? 2 : 1)) return false;  // it may contribute to the score of its group
    better.erase(better.begin() + static_cast<std::ptrdiff_t>(own));
    std::ranges::sort(better);
    for (int64_t g = 0; g + 1 < routing.top_groups; ++g) least += better[static_cast<size_t>(g)];
  }
  return least >= layer.top_k;
}

bool is_surely_chosen(const LayerRouting& layer, const Choice& choice, size_t child) {
  if (groups_limit(layer.routing)) return false;
  int64_t others = 0;
  for (size_t i = 0; i < choice.children().size(); ++i) others += i != child && !choice.outscores(child, i) ? 1 : 0;
  return others < layer.top_k;
}

}  // namespace

bool LayerRouting::originals_unchanged() const { return all_equal(*this, true); }

bool LayerRouting::scores_like_parents() const { return all_equal(*this, false); }

const GrownRows* LayerRouting::choice_bias() const {
  if (selection_bias) return &*selection_bias;
  return bias ? &*bias : nullptr;
}

Chosen new_experts_chosen(const LayerRouting& layer) {
  const GrownRows* bias = layer.choice_bias();
  if (bias == nullptr || bias->after.empty() ||
      !std::ranges::all_of(bias->after, [](float x) { return std::isfinite(x); }))
    return Chosen::kMay;
  if (!layer.originals_unchanged()) return Chosen::kMay;
  const Choice choice(layer);
  bool never = !groups_limit(layer.routing) || groups_keep_originals(layer), lowered = true;
  for (size_t i = 0; i < choice.children().size(); ++i) {
    if (choice.children()[i].copy == 0) continue;
    if (is_surely_chosen(layer, choice, i)) return Chosen::kSurely;
    never = never && is_never_chosen(layer, choice, i);
    lowered = lowered && choice.is_lowered(i);
  }
  if (never) return Chosen::kNever;
  return lowered ? Chosen::kUnsure : Chosen::kMay;
}

double softmax_share_of_copies(const LayerRouting& layer) {
  if (!layer.bias) return 1;
  std::map<uint32_t, double> share;  // by parent
  const auto& children = layer.layer->children;
  for (size_t i = 0; i < children.size(); ++i) {
    if (children[i].copy == 0) continue;
    if (!layer.weight.as_parent[i]) return 1;
    share[children[i].parent] +=
        std::exp(double{layer.bias->after[i]} - double{layer.bias->before[children[i].parent]});
  }
  double most = 0;
  for (const auto& [parent, part] : share) most = std::max(most, part);
  return most;
}

}  // namespace coppice::grow::detail
