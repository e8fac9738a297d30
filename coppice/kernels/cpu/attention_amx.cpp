// Causal attention in bf16 on processors with AMX.

#include "coppice/kernels/cpu/attention_variants_detail.h"
#include "coppice/kernels/cpu/attention_words_backward_detail.h"
#include "coppice/kernels/cpu/tiles_detail.h"

namespace coppice::kernels::cpu {

const detail::AttentionVariant kAttentionByTiles{words_attention_forward<TileUnit<AmxTiles>>,
                                                 words_attention_backward<TileUnit<AmxTiles>>};

}  // namespace coppice::kernels::cpu
