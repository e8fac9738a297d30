#include "coppice/models/expert_norms.h"

#include <cmath>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/lane_sum.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/models/expert_tensors.h"

namespace coppice::models {

using families::Model;
using families::Role;
using families::TensorSlot;

namespace {

double norm(std::span<const float> values) { return std::sqrt(dot(values, values)); }

double* member(ExpertNorms& norms, Role role) {
  switch (role) {
    case Role::kExpertGate: return &norms.gate;
    case Role::kExpertUp: return &norms.up;
    case Role::kExpertDown: return &norms.down;
    default: return nullptr;  // biases
  }
}

// Matrices of one expert's tensor; companions mean that the stored values are not weights.
void add_norms(const ExpertTensor& tensor, int64_t num_experts, ExpertNorms& norms) {
  const io::Dtype dtype = tensor.entry.info->dtype;
  if (!io::is_float(dtype)) {
    throw Error(ErrorCode::kShape, cat("'", tensor.slot->name, "' is ", io::dtype_name(dtype),
                                       "; norms are taken of F32, BF16 and F16 (expand a dequantised checkpoint)"));
  }
  const auto width = io::dtype_bytes(dtype);
  for (const ExpertMatrix& place : expert_matrices(*tensor.slot, num_experts)) {
    double* const out = member(norms, place.role);
    if (out == nullptr) continue;
    std::vector<std::byte> matrix(static_cast<size_t>(place.rows * place.cols) * width);
    gather(place, width, tensor.data(), matrix);
    std::vector<float> values(matrix.size() / width);
    io::to_f32(dtype, matrix, values);
    *out = norm(values);
  }
  tensor.release(0, tensor.slice.bytes);
}

}  // namespace

std::map<int64_t, std::vector<ExpertNorms>> expert_norms(const Model& model, size_t threads) {
  std::map<int64_t, std::vector<ExpertNorms>> norms;
  const ExpertTensors tensors(model);
  const auto num_experts = static_cast<size_t>(model.config.num_experts);
  for (const int64_t layer : model.layers_with_experts) norms[layer].resize(num_experts);
  uint64_t bytes = 0;
  for (const TensorSlot& slot : model.slots) {
    if (slot.role() == Role::kRouter || is_expert(slot.role())) bytes += model.checkpoint.at(slot.name).info->bytes;
  }

  Progress progress("norms", bytes, ProgressUnit::kBytes);
  for (const int64_t layer : model.layers_with_experts) {
    auto& of_layer = norms.at(layer);
    parallel_for(num_experts, threads, [&](size_t expert) {
      check_interrupt();
      for (const ExpertTensor& tensor : tensors.of(layer, static_cast<int64_t>(expert))) {
        add_norms(tensor, model.config.num_experts, of_layer[expert]);
        progress.advance(tensor.slice.bytes);
      }
    });
  }
  for (const TensorSlot& slot : model.slots) {
    if (slot.role() != Role::kRouter) continue;
    const std::vector<float> values = model.checkpoint.read_f32(slot.name);
    auto& of_layer = norms.at(slot.layer);
    const size_t width = values.size() / static_cast<size_t>(model.config.router_rows());
    for (size_t e = 0; e < num_experts; ++e) of_layer[e].router = norm(std::span(values).subspan(e * width, width));
    progress.advance(model.checkpoint.at(slot.name).info->bytes);
  }
  return norms;
}

}  // namespace coppice::models
