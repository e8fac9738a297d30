#include <utility>

#include "coppice/upcycle/child_piece_detail.h"
#include "coppice/upcycle/grow.h"
#include "coppice/upcycle/matrices_bytes.h"

namespace coppice::upcycle::detail {

using families::ExpertMatrix;
using families::TensorSlot;

PieceMaker::Fill child_fill(const GrowthPlan& plan, const Child& child, const TensorSlot& before,
                            const TensorSlot& after, io::Dtype dtype,
                            const std::function<StoredExpert(uint32_t expert)>& original) {
  const auto prepare = [&plan, child, layer = after.layer, original,
                        places = families::expert_matrices(before, plan.experts_before)] {
    std::vector<MatrixRows> matrices;
    for (const ExpertMatrix& place : places) {
      const RowsSource originals = [&](uint32_t expert) { return stored_matrix(original(expert), place); };
      matrices.push_back(child_matrix(plan, layer, child, place.role, originals));
    }
    return matrices;
  };
  return matrices_fill(families::expert_matrices(after, plan.experts_after), dtype, prepare);
}

OutputPiece child_piece(const GrowthPlan& plan, const TensorSlot& after, io::Dtype dtype) {
  const std::vector<ExpertMatrix> places = families::expert_matrices(after, plan.experts_after);
  return {.bytes = matrices_bytes(places, dtype),
          .cuttable = matrices_cuttable(places, grows_by_rows(plan, after.layer))};
}

}  // namespace coppice::upcycle::detail
