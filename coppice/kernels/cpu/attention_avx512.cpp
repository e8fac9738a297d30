// Causal attention on processors with AVX-512.

#include "coppice/kernels/cpu/attention_variants_detail.h"
#include "coppice/kernels/cpu/attention_words_backward_detail.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")

namespace coppice::kernels::cpu {
namespace {

template <class T>
struct Avx512Unit {
  using Element = T;
  static constexpr int64_t kRows = cpu::kRows;

  static void multiply(Words left, const Word* panels, int64_t words, float* out) {
    cpu::multiply<T, cpu::kRows, kPanels>(left, panels, words * kLanes, words, out);
  }
  template <class Row>
  static void turn(const Row& row, int64_t rows, int64_t cols, Word* out) {
    pair_rows<T>(row, rows, cols, out, cols);
  }
  static Words turned(const Word* data, int64_t first, int64_t, int64_t cols) { return {data + first * cols, 1, cols}; }
};

}  // namespace
}  // namespace coppice::kernels::cpu

#pragma GCC pop_options

namespace coppice::kernels::cpu {
namespace {

AttentionForward forward(const AttentionInputs& in) {
  return with_scalar(in.query_BSHC, [&]<class T>(T) { return words_attention_forward<Avx512Unit<T>>(in); });
}

AttentionGradients backward(const AttentionInputs& in, const AttentionForward& forward, const at::Tensor& grad_BSHC) {
  return with_scalar(in.query_BSHC,
                     [&]<class T>(T) { return words_attention_backward<Avx512Unit<T>>(in, forward, grad_BSHC); });
}

}  // namespace

const detail::AttentionVariant kAttentionByWords{forward, backward};

}  // namespace coppice::kernels::cpu
