#include "coppice/convert/lost_digits.h"

#include "coppice/base/text.h"
#include "coppice/matrix/factor_loss.h"

namespace coppice::convert {
namespace {

double factor_of(const ExpertScale& scale, families::Role role) {
  switch (role) {
    case families::Role::kDenseGate: return scale.gate;
    case families::Role::kDenseUp: return scale.up;
    case families::Role::kDenseDown: return scale.down;
    default: return 1;
  }
}

}  // namespace

std::string lost_by_scale(const families::Model& dense, const ConversionPlan& plan) {
  const families::TensorSlot* worst = nullptr;
  double largest = 0;
  for (const families::TensorSlot& slot : dense.slots) {
    const double factor = factor_of(plan.scale, slot.role());
    if (factor == 1 || plan.find_layer(slot.layer) == nullptr) continue;
    const io::Checkpoint::Entry stored = dense.checkpoint.at(slot.name);
    const double loss = matrix::factor_loss(stored.info->dtype, stored.data(), factor);
    stored.file->release(*stored.info);
    if (loss <= largest) continue;
    largest = loss;
    worst = &slot;
  }
  if (worst == nullptr) return {};
  return cat("the values of '", worst->name, "' times ", number_text(factor_of(plan.scale, worst->role())),
             " are rounded to ", io::dtype_name(dense.checkpoint.at(worst->name).info->dtype),
             ", which changes them by up to ", number_text(largest, 2),
             " of the largest (a checkpoint in F32 keeps them).");
}

}  // namespace coppice::convert
