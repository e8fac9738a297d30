// The kernels on AMX tiles, run on tiles in plain C++: everything but the eight instructions. Where the processor has
// AMX, tests/kernels/moe_test.cpp and attention_test.cpp run the instructions too.

#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "coppice/kernels/cpu/attention_variants_detail.h"
#include "coppice/kernels/cpu/processor_detail.h"
#include "coppice/kernels/moe_detail.h"
#include "tests/kernels/emulated_tiles.h"

// After all else.
#include "coppice/kernels/cpu/attention_words_backward_detail.h"
#include "coppice/kernels/cpu/moe_amx_detail.h"
#include "coppice/kernels/cpu/tiles_detail.h"

namespace coppice::kernels::cpu {
namespace {

struct Layer {
  int64_t tokens, dim, experts, top_k, width;
};

void require_near(const at::Tensor& found, const at::Tensor& wanted, double share) {
  const double largest = wanted.to(at::kFloat).abs().max().item<double>();
  EXPECT_LE((found.to(at::kFloat) - wanted.to(at::kFloat)).abs().max().item<double>(), share * largest);
  EXPECT_TRUE(found.isfinite().all().item<bool>());
}

MoeInputs random_layer(const Layer& l, const at::Tensor& index_TK) {
  const auto bf16 = at::TensorOptions().dtype(at::kBFloat16);
  return {at::randn({l.tokens, l.dim}, bf16), at::randn({l.experts, 2 * l.width, l.dim}, bf16) * 0.1,
          at::randn({l.experts, l.dim, l.width}, bf16) * 0.1, index_TK, at::rand({l.tokens, l.top_k})};
}

void compare_with_avx512(const MoeInputs& in) {
  using Variant = TileVariant<EmulatedTiles>;
  const MoeForward tiles = words_forward<Variant>(in), words = kExpertsByWords.forward(in);
  require_near(tiles.y_TD, words.y_TD, 0.01);
  require_near(tiles.hidden_PG, words.hidden_PG, 0.01);
  const auto grad = at::randn(in.x_TD.sizes(), in.x_TD.options());
  const MoeGradients a = words_backward<Variant>(in, words, grad);
  const MoeGradients b = kExpertsByWords.backward(in, words, grad);
  require_near(a.x_TD, b.x_TD, 0.01);
  require_near(a.gate_TK, b.gate_TK, 0.01);
  require_near(a.w_gate_up_EGD, b.w_gate_up_EGD, 0.01);
  require_near(a.w_down_EDF, b.w_down_EDF, 0.01);
}

class Tiles : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!this_processor().avx512_bf16) GTEST_SKIP() << "no AVX-512 with bf16";
  }
};

// Rows an expert that fill no tile, one tile, a step and more than a task; and experts without any.
TEST_F(Tiles, ExpertsAreThoseOfWords) {
  for (const Layer& l :
       {Layer{7, 32, 3, 1, 32}, Layer{77, 64, 5, 2, 96}, Layer{150, 96, 2, 2, 64}, Layer{700, 32, 1, 1, 32}}) {
    compare_with_avx512(random_layer(l, at::randint(l.experts, {l.tokens, l.top_k}, at::kLong)));
  }
}

TEST_F(Tiles, ExpertsWithoutTokensGetZeros) {
  const auto in = random_layer({40, 32, 4, 1, 32}, at::full({40, 1}, 2, at::kLong));
  compare_with_avx512(in);
  const auto grads =
      words_backward<TileVariant<EmulatedTiles>>(in, kExpertsByWords.forward(in), at::randn({40, 32}, at::kBFloat16));
  EXPECT_EQ(grads.w_down_EDF[0].abs().max().item<float>(), 0);
  EXPECT_GT(grads.w_down_EDF[2].abs().max().item<float>(), 0);
}

TEST_F(Tiles, AttentionIsThatOfWords) {
  using Unit = TileUnit<EmulatedTiles>;
  for (const bool with_documents : {false, true}) {
    for (const int64_t dim : {32, 64}) {
      const auto of = [&](int64_t heads) { return at::randn({2, 96, heads, dim}, at::kBFloat16); };
      AttentionInputs in{of(4), of(2), of(2), 0.2};
      if (with_documents) {
        const auto start_BS = at::zeros({2, 96}, at::kLong);
        start_BS.narrow(1, 45, 51).fill_(45);
        start_BS.narrow(1, 77, 19).fill_(77);
        in.sight.documents = find_documents(start_BS, at::kCPU);
      }
      const auto tiles = words_attention_forward<Unit>(in), words = kAttentionByWords.forward(in);
      require_near(tiles.out_BSHC, words.out_BSHC, 0.01);
      require_near(tiles.log_sum, words.log_sum, 1e-4);
      const auto grad = of(4);
      const auto a = words_attention_backward<Unit>(in, words, grad), b = kAttentionByWords.backward(in, words, grad);
      require_near(a.query_BSHC, b.query_BSHC, 0.01);
      require_near(a.key_BSJC, b.key_BSJC, 0.01);
      require_near(a.value_BSJC, b.value_BSJC, 0.01);
    }
  }
}

}  // namespace
}  // namespace coppice::kernels::cpu
