#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/grow/lost_digits_detail.h"
#include "coppice/matrix/factor_loss.h"
#include "coppice/matrix/quantised_matrix.h"
#include "coppice/models/expert_layout.h"

namespace coppice::grow::detail {
namespace {

constexpr double kScoreRounding = 0x1p-22;  // relative to a score, or to a larger bias that is added to it

/// The same for a tensor that is computed from quantised values: they count as rounded to bf16.
void look_at_computed(const families::TensorSlot& slot, const families::QuantisedTensor& parts, int64_t experts,
                      double factor, matrix::WorstLoss& worst) {
  if (matrix::is_power_of_two(factor)) return;
  std::vector<std::byte> bytes;
  for (int64_t expert = 0; expert < parts.count; ++expert) {
    for (const models::ExpertMatrix& place : models::expert_matrices(slot, experts)) {
      const auto rows = matrix::quantised_rows(parts, expert, place, slot.rule->layout.transposed);
      rows.for_each_block([&](int64_t, std::span<const float> values) {
        bytes.resize(values.size() * io::dtype_bytes(io::Dtype::kBf16));
        io::from_f32(io::Dtype::kBf16, values, bytes);
        worst.look(slot.name.view(), io::Dtype::kBf16, bytes, factor);
      });
    }
  }
}

}  // namespace

std::string lost_by_biases(const GrownRows& bias, const methods::LayerPlan& layer, double factor) {
  if (factor == 1 || bias.before.empty()) return {};
  double least = std::numeric_limits<double>::infinity(), most = -least;
  double largest = 1;  // the largest score or bias
  for (size_t i = 0; i < layer.children.size(); ++i) {
    const double before = bias.before[layer.children[i].parent];
    const double error = double{bias.after[i]} / factor - before;
    least = std::min(least, error);
    most = std::max(most, error);
    largest = std::max(largest, std::abs(before));
  }
  if (most - least <= kScoreRounding * largest) return {};
  return cat("the selection biases times ", number_text(factor), " are rounded to ", io::dtype_name(bias.dtype),
             ", which shifts experts' scores against each other by up to ", number_text(most - least, 2),
             ", so other experts may be chosen (a checkpoint in F32 keeps them).");
}

std::string lost_by_experts(const families::Model& model, const plan::GrowthPlan& plan, int64_t layer) {
  matrix::WorstLoss worst;
  for (const families::TensorSlot& slot : model.slots) {
    const double factor = plan::expert_factor(plan, slot.role());
    if (slot.layer != layer || factor == 1) continue;
    if (const families::QuantisedTensor* parts = model.quantised(slot.name)) {
      look_at_computed(slot, *parts, plan.experts_before, factor, worst);
      continue;
    }
    const io::Checkpoint::Entry stored = model.checkpoint.at(slot.name);
    const size_t matrices = slot.rule->layout.stacked ? static_cast<size_t>(plan.experts_before) : 1;
    const size_t bytes = stored.info->bytes / matrices;
    for (size_t i = 0; i < matrices; ++i) {
      worst.look(slot.name.view(), stored.info->dtype, stored.data().subspan(i * bytes, bytes), factor);
    }
    stored.file->release(*stored.info);
  }
  return worst.text();
}

}  // namespace coppice::grow::detail
