#pragma once

// Which of the CPU's variants runs: what the processor has is read once, and pure functions decide. T tokens, E experts,
// K choices per token, D model dimension, F expert width; S positions, C head dimension.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice::kernels::cpu {

struct Processor {
  bool avx512 = false;       ///< F, BW, DQ and VL
  bool avx512_bf16 = false;  ///< and products of bf16
  bool amx_bf16 = false;     ///< matrix tiles of bf16, which the operating system lets this process use
  bool intel = false;        ///< MKL has its fast f32 products for it
};
const Processor& this_processor();

/// Whether it computes in this dtype by words_avx512_detail.h, and by tiles_detail.h.
bool has_words(const Processor& processor, at::ScalarType dtype);
bool has_tiles(const Processor& processor, at::ScalarType dtype);

/// Whether it multiplies bf16 faster than f32. An Intel processor without tiles does not: its vdpbf16ps makes half the
/// products a second of its f32 FMA. Processors that cannot multiply bf16 do not either.
bool has_fast_bf16(const Processor& processor);

/// Set by tests alone: products of bf16 are computed in f32 on every processor.
inline bool f32_products_everywhere = false;

enum class Path {
  kLibtorch,  ///< libtorch's GEMMs and attention; in bf16 oneDNN uses matrix tiles where there are any
  kWords,     ///< words_avx512_detail.h
  kTiles,     ///< tiles_detail.h
  kLanes,     ///< lanes_detail.h; f32, and attention in bf16 too
};

struct ExpertsShape {
  int64_t pairs, experts, dim, width;  ///< T * K, E, D, F
  bool is_plain;                       ///< SwiGLU without biases
};
Path pick_experts(const Processor& processor, const ExpertsShape& shape, at::ScalarType dtype);

struct AttentionShape {
  int64_t positions, heads, key_heads, dim;  ///< S, H, J, C
};
Path pick_attention(const Processor& processor, const AttentionShape& shape, at::ScalarType dtype);

}  // namespace coppice::kernels::cpu
