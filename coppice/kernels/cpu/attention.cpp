// Which of the CPU's ways computes causal attention.

#include "coppice/base/check.h"
#include "coppice/kernels/cpu/attention_variants_detail.h"
#include "coppice/kernels/cpu/lanes_detail.h"
#include "coppice/kernels/cpu/processor_detail.h"

namespace coppice::kernels::cpu {
namespace {

Path path_for(const detail::AttentionInputs& in) {
  const AttentionShape shape{.positions = in.query_BSHC.numel() > 0 ? in.query_BSHC.size(1) : 0,
                             .heads = in.query_BSHC.size(2),
                             .key_heads = in.key_BSJC.size(2),
                             .dim = in.query_BSHC.size(3)};
  return pick_attention(this_processor(), shape, in.query_BSHC.scalar_type());
}

}  // namespace

const detail::AttentionVariant* attention_for(const detail::AttentionInputs& in) {
  switch (path_for(in)) {
    case Path::kWords: return &kAttentionByWords;
    case Path::kTiles: return &kAttentionByTiles;
    case Path::kLanes: return &lanes_of(this_processor()).attention;
    case Path::kLibtorch: return nullptr;
  }
  COPPICE_CHECK(false, "path ", static_cast<int>(path_for(in)));
}

}  // namespace coppice::kernels::cpu
