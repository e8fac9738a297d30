// Averages experts into one feed-forward layer (--dense-average).

#include <memory>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/convert/converted_tensors.h"
#include "coppice/convert/matrices_detail.h"
#include "coppice/matrix/stored_matrix.h"
#include "coppice/models/expert_tensors.h"

namespace coppice::convert {
namespace {

using families::Role;
using matrix::MatrixRows;
using models::ExpertMatrix;
using output::OutputTensor;

Role expert_role(Role dense) {
  if (dense == Role::kDenseGate) return Role::kExpertGate;
  return dense == Role::kDenseUp ? Role::kExpertUp : Role::kExpertDown;
}

/// The matrix `role` of an expert, whatever the layout.
MatrixRows expert_matrix(const models::ExpertTensors& parts, int64_t layer, int64_t expert, Role role) {
  for (const models::ExpertTensor& part : parts.of(layer, expert)) {
    for (const ExpertMatrix& place : models::expert_matrices(*part.slot, parts.model().config.num_experts)) {
      if (place.role == role) return matrix::stored_matrix({part.entry, part.slice}, place);
    }
  }
  COPPICE_CHECK(false, families::role_name(role), " of layer ", layer);
}

}  // namespace

std::vector<OutputTensor> averaged_tensors(const families::Model& moe, const Mapping& mapping) {
  const auto parts = std::make_shared<const models::ExpertTensors>(moe);
  const auto dtype_of_new = moe.checkpoint.at(mapping.tensors.front().source).info->dtype;
  std::vector<OutputTensor> tensors;
  for (const MappedTensor& mapped : mapping.tensors) {
    const families::TensorSlot& slot = mapped.slot;
    const bool is_new = mapped.source.empty();
    const io::Dtype dtype = is_new ? dtype_of_new : moe.checkpoint.at(mapped.source).info->dtype;
    io::TensorInfo info = output::tensor_info(slot.name, dtype, slot.shape);
    if (mapped.origin == Origin::kCopy) {
      tensors.push_back(output::copied_tensor(std::move(info), moe.checkpoint.at(mapped.source)));
      continue;
    }
    const ExpertMatrix place = detail::whole(slot.role(), slot.shape);
    std::function<std::vector<MatrixRows>()> make;
    if (mapped.origin == Origin::kExpertMean) {
      detail::check_float(moe.checkpoint.at(mapped.source));
      make = [parts, layer = slot.layer, role = expert_role(slot.role())] {
        std::vector<MatrixRows> matrices;
        for (int64_t expert = 0; expert < parts->model().config.num_experts; ++expert)
          matrices.push_back(expert_matrix(*parts, layer, expert, role));
        return std::vector{detail::average(std::move(matrices))};
      };
    } else {
      const float value = mapped.origin == Origin::kOnes ? 1.0f : 0.0f;
      make = [place, value] { return std::vector{detail::constant(place, value)}; };
    }
    OutputTensor& out = tensors.emplace_back(OutputTensor{std::move(info), {}});
    out.pieces.push_back(output::matrices_piece({place}, dtype, true, std::move(make)));
  }
  return tensors;
}

}  // namespace coppice::convert
