#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/grow/lost_digits_detail.h"

namespace coppice::grow::detail {
namespace {

constexpr double kRounding = 0x1p-20;       // of a matrix's largest value: what sums of products in fp32 lose anyway
constexpr double kScoreRounding = 0x1p-22;  // of a score, or of a larger bias that is added to it

/// Of the matrix of one expert: the largest error and the largest value.
struct Loss {
  double error = 0, largest = 0;
  double relative() const { return largest > 0 ? error / largest : 0; }
};

Loss loss_of(io::Dtype dtype, std::span<const std::byte> matrix, double factor) {
  constexpr size_t kBlock = size_t{1} << 16;
  const size_t width = io::dtype_bytes(dtype), count = matrix.size() / width;
  std::vector<float> before, after;
  std::vector<std::byte> stored;
  Loss loss;
  for (size_t first = 0; first < count; first += kBlock) {
    const size_t n = std::min(kBlock, count - first);
    before.resize(n);
    after.resize(n);
    stored.resize(n * width);
    io::to_f32(dtype, matrix.subspan(first * width, n * width), before);
    std::ranges::transform(before, after.begin(), [factor](float x) { return static_cast<float>(factor * x); });
    io::from_f32(dtype, after, stored);
    io::to_f32(dtype, stored, after);
    for (size_t i = 0; i < n; ++i) {
      if (!std::isfinite(before[i]) || !std::isfinite(after[i])) continue;  // refused when the model is made
      loss.error = std::max(loss.error, std::abs(double{after[i]} / factor - double{before[i]}));
      loss.largest = std::max(loss.largest, std::abs(double{before[i]}));
    }
  }
  return loss;
}

/// F32 keeps 24 digits; BF16 has the exponents of F32, so that a power of two costs it nothing that counts.
bool may_lose(io::Dtype dtype, double factor) {
  if (factor == 1 || dtype == io::Dtype::kF32 || !io::is_float(dtype)) return false;
  return dtype != io::Dtype::kBf16 || !plan::is_power_of_two(factor);
}

}  // namespace

std::string lost_by_biases(const GrownRows& bias, const methods::LayerPlan& layer, double factor) {
  if (factor == 1 || bias.before.empty()) return {};
  double least = std::numeric_limits<double>::infinity(), most = -least;
  double largest = 1;  // of scores and biases
  for (size_t i = 0; i < layer.children.size(); ++i) {
    const double before = bias.before[layer.children[i].parent];
    const double error = double{bias.after[i]} / factor - before;
    least = std::min(least, error);
    most = std::max(most, error);
    largest = std::max(largest, std::abs(before));
  }
  if (most - least <= kScoreRounding * largest) return {};
  return cat("the selection biases times ", number_text(factor), " are rounded to ", io::dtype_name(bias.dtype),
             ", which moves experts' scores against each other by up to ", number_text(most - least, 2),
             ", so other experts may be chosen (a checkpoint in F32 keeps them).");
}

std::string lost_by_experts(const families::Model& model, const plan::GrowthPlan& plan, int64_t layer) {
  const families::TensorSlot* worst = nullptr;
  double largest = kRounding;
  for (const families::TensorSlot& slot : model.slots) {
    const double factor = plan::expert_factor(plan, slot.role());
    if (slot.layer != layer || factor == 1) continue;
    const io::Checkpoint::Entry stored = model.checkpoint.at(slot.name);
    if (!may_lose(stored.info->dtype, factor)) continue;
    const size_t matrices = slot.rule->layout.stacked ? static_cast<size_t>(plan.experts_before) : 1;
    const size_t bytes = stored.info->bytes / matrices;
    for (size_t i = 0; i < matrices; ++i) {
      const double relative = loss_of(stored.info->dtype, stored.data().subspan(i * bytes, bytes), factor).relative();
      if (relative <= largest) continue;
      largest = relative;
      worst = &slot;
    }
    stored.file->release(*stored.info);
  }
  if (worst == nullptr) return {};
  return cat("the values of '", worst->name, "' times ", number_text(plan::expert_factor(plan, worst->role())),
             " are rounded to ", io::dtype_name(model.checkpoint.at(worst->name).info->dtype),
             ", which changes them by up to ", number_text(largest, 2),
             " of the largest (a checkpoint in F32 keeps them).");
}

}  // namespace coppice::grow::detail
