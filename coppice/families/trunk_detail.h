#pragma once

// Patterns for the tensors of decoders besides experts and routers, which expand-only families copy.

#include "coppice/families/family.h"

namespace coppice::families::detail {

inline constexpr TensorRule kDecoderTrunk[] = {
    {"model.embed_tokens.weight", Role::kEmbeddings},
    {"lm_head.*", Role::kEmbeddings},
    {"model.*norm*.**", Role::kNorm},
    {"model.layers.{L}.*norm*.**", Role::kNorm},
    {"model.layers.{L}.self_attn.**", Role::kAttention},
    {"model.layers.{L}.linear_attn.**", Role::kAttention},
    {"model.layers.{L}.mamba.**", Role::kAttention},
    {"model.layers.{L}.conv.**", Role::kAttention},
    // Multi-token prediction: layers after the last one, or a separate module.
    {"model.layers.{L}.embed_tokens.weight", Role::kOther},
    {"model.layers.{L}.eh_proj.**", Role::kOther},
    {"model.layers.{L}.shared_head.**", Role::kOther},
    {"mtp.layers.{M}.*norm*.**", Role::kNorm},
    {"mtp.layers.{M}.self_attn.**", Role::kAttention},
    {"mtp.layers.{M}.linear_attn.**", Role::kAttention},
    {"mtp.*norm*.**", Role::kNorm},
    {"mtp.fc.**", Role::kOther},
    {"mtp.embed_tokens.weight", Role::kOther},
};

}  // namespace coppice::families::detail
