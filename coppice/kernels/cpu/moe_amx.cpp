// The MoE layer in bf16 on processors with AMX.

#include "coppice/kernels/cpu/moe_amx_detail.h"

namespace coppice::kernels::cpu {

const detail::MoeVariant kExpertsByTiles{words_forward<TileVariant<AmxTiles>>, words_backward<TileVariant<AmxTiles>>};

}  // namespace coppice::kernels::cpu
