#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/grow/tied_experts_detail.h"
#include "coppice/matrix/factor_loss.h"
#include "coppice/models/expert_tensors.h"

namespace coppice::grow::detail {
namespace {

constexpr float kLargeBias = 64;  // added to it, a score of 1 keeps 17 bits in fp32

/// Groups experts whose scores are computed from equal values.
std::vector<std::vector<uint32_t>> tied_experts(const LayerRouting& layer) {
  std::map<std::vector<uint32_t>, std::vector<uint32_t>> alike;  // compared by bits, so that NaN works too
  if (layer.weight.before.empty()) return {};
  for (uint32_t e = 0; e < layer.experts_before; ++e) {
    std::vector<uint32_t> key;
    for (const float x : layer.weight.row_before(e)) key.push_back(std::bit_cast<uint32_t>(x));
    for (const GrownRows* bias :
         {layer.bias ? &*layer.bias : nullptr, layer.selection_bias ? &*layer.selection_bias : nullptr}) {
      if (bias != nullptr && !bias->before.empty()) key.push_back(std::bit_cast<uint32_t>(bias->before[e]));
    }
    alike[std::move(key)].push_back(e);
  }
  std::vector<std::vector<uint32_t>> tied;
  for (auto& [key, experts] : alike) {
    if (experts.size() > 1) tied.push_back(std::move(experts));
  }
  std::ranges::sort(tied);
  return tied;
}

bool are_equal(const models::ExpertTensors& tensors, int64_t layer, uint32_t a, uint32_t b) {
  const auto of_a = tensors.of(layer, a), of_b = tensors.of(layer, b);
  return std::ranges::equal(of_a, of_b, [](const models::ExpertTensor& x, const models::ExpertTensor& y) {
    const bool equal = std::ranges::equal(x.data(), y.data());
    x.release(0, x.slice.bytes);
    y.release(0, y.slice.bytes);
    return equal;
  });
}

/// If different experts tie, the lower index is chosen. Returns whether that is still the same expert: the children of
/// every parent are adjacent, or only one expert is chosen. Scores divided by a power of two tie as before.
bool order_decides_as_before(const plan::GrowthPlan& plan, const LayerRouting& layer) {
  if (!matrix::is_power_of_two(plan.selection_bias_factor)) return false;
  uint32_t last = 0;
  for (const methods::Child& child : layer.layer->children) {
    if (plan.top_k_factor == 1 && child.copy > 0) continue;
    if (child.parent < last) return false;
    last = child.parent;
  }
  return true;
}

/// Whether two biases, closer to each other than the range of scores, are so large that scores lose digits.
bool biases_swallow_scores(const GrownRows& bias) {
  std::vector<float> sorted = bias.before;
  std::ranges::sort(sorted);
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i] - sorted[i - 1] < 1 && std::max(std::abs(sorted[i]), std::abs(sorted[i - 1])) > kLargeBias)
      return true;
  }
  return false;
}

}  // namespace

std::string decisive_ties(const families::Model& model, const plan::GrowthPlan& plan, const LayerRouting& layer) {
  const auto tied = tied_experts(layer);
  if (!tied.empty()) {
    const models::ExpertTensors tensors(model);
    for (const auto& experts : tied) {
      for (size_t i = 1; i < experts.size(); ++i) {
        if (are_equal(tensors, layer.layer->layer, experts[0], experts[i])) continue;
        return cat("experts ", experts[0], " and ", experts[i], " of layer ", layer.layer->layer,
                   " have equal router rows but different weights, so they tie for every token, and another of them "
                   "may be chosen.");
      }
    }
  }
  const GrownRows* bias = layer.choice_bias();
  if (bias == nullptr || !biases_swallow_scores(*bias) || order_decides_as_before(plan, layer)) return {};
  return cat("biases of layer ", layer.layer->layer,
             " are so large that scores added to them lose their last digits, so different experts tie, and another of "
             "them may be chosen",
             matrix::is_power_of_two(plan.selection_bias_factor) ? " (order siblings would keep it)." : ".");
}

}  // namespace coppice::grow::detail
