#include "coppice/convert/lost_digits.h"

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
  matrix::WorstLoss worst;
  for (const families::TensorSlot& slot : dense.slots) {
    const double factor = factor_of(plan.scale, slot.role());
    if (factor == 1 || plan.find_layer(slot.layer) == nullptr) continue;
    const io::Checkpoint::Entry stored = dense.checkpoint.at(slot.name);
    worst.look(slot.name.view(), stored.info->dtype, stored.data(), factor);
    stored.file->release(*stored.info);
  }
  return worst.text();
}

}  // namespace coppice::convert
