#include <deque>
#include <utility>
#include <vector>

#include "coppice/families/expert_layout.h"
#include "coppice/upcycle/grow.h"
#include "coppice/upcycle/stacked_experts_detail.h"

namespace coppice::upcycle::detail {
namespace {

using families::ExpertMatrix;
using families::ExpertSlice;
using families::Role;
using families::TensorSlot;

/// Matrices gathered from a stack for one computation, and the pages that they were read from.
class GatheredMatrices {
 public:
  GatheredMatrices(const TensorSlot& slot, const io::Checkpoint::Entry& source, int64_t num_experts)
      : slot_(slot), source_(source), num_experts_(num_experts) {}

  MatrixBytes read(const ExpertMatrix& place, uint32_t expert) {
    const io::Dtype dtype = source_.info->dtype;
    const auto width = static_cast<size_t>(io::dtype_bits(dtype) / 8);
    const ExpertSlice slice = families::expert_slice(slot_, source_.info->bytes, num_experts_, expert);
    std::vector<std::byte>& matrix = matrices_.emplace_back(static_cast<size_t>(place.rows * place.cols) * width);
    families::gather(place, width, source_.data().subspan(slice.offset, slice.bytes), matrix);
    io::TensorInfo window = *source_.info;
    window.offset += slice.offset;
    window.bytes = slice.bytes;
    source_.file->release(window);
    return {dtype, place.rows, place.cols, matrix};
  }

 private:
  const TensorSlot& slot_;
  const io::Checkpoint::Entry source_;
  const int64_t num_experts_;
  std::deque<std::vector<std::byte>> matrices_;
};

void compute_child(const GrowthPlan& plan, const TensorSlot& slot, const io::Checkpoint::Entry& source,
                   const Child& child, std::span<std::byte> out) {
  const auto width = static_cast<size_t>(io::dtype_bits(source.info->dtype) / 8);
  TensorSlot before = slot;
  before.shape = source.info->shape;
  for (const ExpertMatrix& place : families::expert_matrices(before, plan.experts_before)) {
    GatheredMatrices gathered(before, source, plan.experts_before);
    const MatrixSource matrix_of = [&](uint32_t expert) { return gathered.read(place, expert); };
    std::vector<std::byte> grown(static_cast<size_t>(place.rows * place.cols) * width);
    grow_expert(plan, slot.layer, child, place.role, matrix_of, source.info->dtype, grown);
    families::scatter(place, width, grown, out);
  }
}

}  // namespace

OutputTensor grown_stack(const families::Model& model, const GrowthPlan& plan, const TensorSlot& slot,
                         io::TensorInfo info, const io::Checkpoint::Entry& source) {
  const bool only_copied = slot.role() == Role::kExpertCompanion || slot.role() == Role::kAttentionExpert;
  OutputTensor out{std::move(info), {}};
  for (const Child& child : plan.layer(slot.layer).children) {
    const ExpertSlice slice = families::expert_slice(slot, source.info->bytes, model.config.num_experts, child.parent);
    OutputPiece piece{
        .bytes = slice.bytes, .file = source.file, .offset = source.info->offset + slice.offset, .compute = {}};
    if (!only_copied && !is_plain_copy(plan, child)) {
      piece.file = nullptr;
      piece.offset = 0;
      piece.compute = [&plan, &slot, source, child](std::span<std::byte> bytes) {
        compute_child(plan, slot, source, child, bytes);
      };
    }
    out.pieces.push_back(std::move(piece));
  }
  return out;
}

}  // namespace coppice::upcycle::detail
