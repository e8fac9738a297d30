// Which of the CPU's ways computes causal attention.

#include "coppice/base/check.h"
#include "coppice/kernels/cpu/attention_variants_detail.h"
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

const AttentionVariant& way_for(const detail::AttentionInputs& in) {
  const Path path = path_for(in);
  COPPICE_CHECK(path != Path::kLibtorch);
  if (path == Path::kLanes) return kAttentionByLanes;
  return path == Path::kTiles ? kAttentionByTiles : kAttentionByWords;
}

}  // namespace

bool has_attention_for(const detail::AttentionInputs& in) { return path_for(in) != Path::kLibtorch; }

detail::AttentionForward attention_forward(const detail::AttentionInputs& in) { return way_for(in).forward(in); }

detail::AttentionGradients attention_backward(const detail::AttentionInputs& in,
                                              const detail::AttentionForward& forward, const at::Tensor& grad_BSHC) {
  return way_for(in).backward(in, forward, grad_BSHC);
}

}  // namespace coppice::kernels::cpu
