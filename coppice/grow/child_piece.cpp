#include <utility>

#include "coppice/grow/child_piece_detail.h"
#include "coppice/grow/grow.h"
#include "coppice/matrix/matrices_bytes.h"

namespace coppice::grow::detail {

using families::TensorSlot;
using models::ExpertMatrix;

output::PieceMaker::Fill child_fill(const plan::GrowthPlan& plan, const methods::Child& child, const TensorSlot& before,
                                    const TensorSlot& after, io::Dtype dtype, const Originals& original) {
  const auto prepare = [&plan, child, layer = after.layer, original,
                        places = models::expert_matrices(before, plan.experts_before)] {
    std::vector<matrix::MatrixRows> matrices;
    for (const ExpertMatrix& place : places) {
      const matrix::RowsSource originals = [&](uint32_t expert) { return original(expert, place); };
      matrices.push_back(child_matrix(plan, layer, child, place.role, originals));
    }
    return matrices;
  };
  return matrix::matrices_fill(models::expert_matrices(after, plan.experts_after), dtype, prepare);
}

output::OutputPiece child_piece(const plan::GrowthPlan& plan, const TensorSlot& after, io::Dtype dtype) {
  const std::vector<ExpertMatrix> places = models::expert_matrices(after, plan.experts_after);
  return {.bytes = matrix::matrices_bytes(places, dtype),
          .cuttable = matrix::matrices_cuttable(places, grows_by_rows(plan, after.layer))};
}

}  // namespace coppice::grow::detail
