// Blocks of random numbers with Highway, compiled for each instruction set and chosen at run time. Multiplications and
// additions are never fused, so that every instruction set, and the scalar code of box_muller_detail.h, gives the same
// bits.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "coppice/base/rng_simd.cpp"
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>

#include "coppice/base/rng_detail.h"

HWY_BEFORE_NAMESPACE();
namespace coppice::detail::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F = hn::ScalableTag<float>;
using I = hn::RebindToSigned<F>;
using U = hn::RebindToUnsigned<F>;
using W = hn::RepartitionToWide<U>;  // 64 bits
using VecF = hn::Vec<F>;
using VecU = hn::Vec<U>;
using VecW = hn::Vec<W>;

// One word of every second block, in the lower half of 64 bits. The upper half is undefined: the multiplication reads
// only the lower half.
struct Words {
  VecW w[4];
};

HWY_INLINE VecW product(VecW word, VecU factor) { return hn::MulEven(hn::BitCast(U(), word), factor); }

HWY_INLINE void philox(Words& c, const std::array<uint32_t, 2>& key) {
  const W w;
  const VecU factor_a = hn::Set(U(), 0xD2511F53u), factor_b = hn::Set(U(), 0xCD9E8D57u);
  uint32_t key0 = key[0], key1 = key[1];
  for (int round = 0; round < 10; ++round) {
    const VecW a = product(c.w[0], factor_a), b = product(c.w[2], factor_b);
    c.w[0] = hn::Xor(hn::Xor(hn::ShiftRight<32>(b), c.w[1]), hn::Set(w, uint64_t{key0}));
    c.w[1] = b;
    c.w[2] = hn::Xor(hn::Xor(hn::ShiftRight<32>(a), c.w[3]), hn::Set(w, uint64_t{key1}));
    c.w[3] = a;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// The four words of Lanes(U()) blocks from `block` on.
HWY_INLINE void random_words(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t block,
                             VecU* out) {
  const W w;
  Words half[2];
  for (uint64_t odd = 0; odd < 2; ++odd) {
    const VecW lane = hn::Iota(w, 0);
    const VecW blocks = hn::Add(hn::Set(w, block + odd), hn::Add(lane, lane));
    half[odd] = {{blocks, hn::Or(hn::Set(w, uint64_t{words[1]}), hn::ShiftRight<32>(blocks)),
                  hn::Set(w, uint64_t{words[2]}), hn::Set(w, uint64_t{words[3]})}};
  }
  philox(half[0], key);
  philox(half[1], key);
  for (int i = 0; i < 4; ++i) {
    const VecU even = hn::BitCast(U(), half[0].w[i]);
    const VecU odd = hn::BitCast(U(), hn::ShiftLeft<32>(half[1].w[i]));
    out[i] = hn::OddEven(odd, even);
  }
}

HWY_INLINE VecF polynomial(VecF p, VecF x, float next) { return hn::Add(hn::Mul(p, x), hn::Set(F(), next)); }

// The same operations in the same order as minus_log, sincos_turn and box_muller of box_muller_detail.h.
HWY_INLINE VecF minus_log(VecF u) {
  const F f32;
  const VecU root_half = hn::Set(U(), 0x3f3504f3u);
  const VecU offset = hn::Sub(hn::BitCast(U(), u), root_half);
  const VecF exponent = hn::ConvertTo(f32, hn::ShiftRight<23>(hn::BitCast(I(), offset)));
  const VecU mantissa = hn::Add(hn::And(offset, hn::Set(U(), 0x7fffffu)), root_half);
  const VecF f = hn::Sub(hn::BitCast(f32, mantissa), hn::Set(f32, 1.0F));
  VecF p = hn::Set(f32, 0.08700435608625412F);
  p = polynomial(p, f, -0.14267486333847046F);
  p = polynomial(p, f, 0.14914767444133759F);
  p = polynomial(p, f, -0.1657758504152298F);
  p = polynomial(p, f, 0.19963063299655914F);
  p = polynomial(p, f, -0.2500133812427521F);
  p = polynomial(p, f, 0.3333390951156616F);
  const VecF inner = hn::Mul(hn::Sub(hn::Mul(f, p), hn::Set(f32, 0.5F)), hn::Mul(f, f));
  const VecF tail = hn::Add(inner, hn::Mul(exponent, hn::Set(f32, 1.428606765330187e-06F)));
  return hn::Neg(hn::Add(hn::Mul(exponent, hn::Set(f32, 0.693145751953125F)), hn::Add(f, tail)));
}

HWY_INLINE void box_muller(VecU radius_bits, VecU angle_bits, VecF& first, VecF& second) {
  const F f32;
  const U u32;
  const VecF whole = hn::ConvertTo(f32, hn::BitCast(I(), hn::ShiftRight<1>(radius_bits)));
  const VecF u = hn::Mul(hn::Add(whole, hn::Set(f32, 0.5F)), hn::Set(f32, 0x1p-31F));
  const VecF radius = hn::Sqrt(hn::Mul(hn::Set(f32, 2.0F), minus_log(u)));

  const VecU quarter = hn::ShiftRight<30>(hn::Add(angle_bits, hn::Set(u32, 1u << 29)));
  const VecU rest = hn::Sub(angle_bits, hn::ShiftLeft<30>(quarter));
  const VecF a = hn::Mul(hn::ConvertTo(f32, hn::BitCast(I(), rest)), hn::Set(f32, 1.4629180792671596e-09F));
  const VecF z = hn::Mul(a, a);
  VecF s = hn::Set(f32, -0.0001951729936990887F);
  s = polynomial(s, z, 0.008332177996635437F);
  s = polynomial(s, z, -0.16666655242443085F);
  s = hn::Add(hn::Mul(hn::Mul(s, z), a), a);
  VecF c = hn::Set(f32, 2.4438451873720624e-05F);
  c = polynomial(c, z, -0.001388736767694354F);
  c = polynomial(c, z, 0.04166664555668831F);
  c = hn::Add(hn::Mul(hn::Sub(hn::Mul(c, z), hn::Set(f32, 0.5F)), z), hn::Set(f32, 1.0F));
  const VecU one = hn::Set(u32, 1), two = hn::Set(u32, 2);
  const auto swap = hn::RebindMask(f32, hn::TestBit(quarter, one));
  const VecU sin_sign = hn::ShiftLeft<30>(hn::And(quarter, two));
  const VecU cos_sign = hn::ShiftLeft<30>(hn::And(hn::Add(quarter, one), two));
  const VecF sin = hn::Xor(hn::IfThenElse(swap, c, s), hn::BitCast(f32, sin_sign));
  const VecF cos = hn::Xor(hn::IfThenElse(swap, s, c), hn::BitCast(f32, cos_sign));
  first = hn::Mul(radius, cos);
  second = hn::Mul(radius, sin);
}

struct Normal {
  HWY_INLINE void operator()(const VecU* words, VecF* out) const {
    box_muller(words[0], words[1], out[0], out[1]);
    box_muller(words[2], words[3], out[2], out[3]);
  }
};

struct Uniform {
  HWY_INLINE void operator()(const VecU* words, VecF* out) const {
    const F f32;
    for (int i = 0; i < 4; ++i) {
      const VecF whole = hn::ConvertTo(f32, hn::ShiftRight<8>(hn::BitCast(I(), words[i])));
      out[i] = hn::Mul(hn::Add(whole, hn::Set(f32, 0.5F)), hn::Set(f32, 0x1p-23F));
    }
  }
};

template <class Become>
HWY_INLINE void fill(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                     size_t blocks, float* HWY_RESTRICT out, Become become) {
  const F f32;
  const size_t at_once = hn::Lanes(f32);
  VecU random[4];
  VecF values[4];
  size_t done = 0;
  for (; done + at_once <= blocks; done += at_once) {
    random_words(words, key, first + done, random);
    become(random, values);
    hn::StoreInterleaved4(values[0], values[1], values[2], values[3], f32, out + 4 * done);
  }
  if (done == blocks) return;
  HWY_ALIGN float some[4 * HWY_MAX_BYTES / sizeof(float)];
  random_words(words, key, first + done, random);
  become(random, values);
  hn::StoreInterleaved4(values[0], values[1], values[2], values[3], f32, some);
  for (size_t i = 0; i < 4 * (blocks - done); ++i) out[4 * done + i] = some[i];
}

void fill_normal(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                 size_t blocks, float* out) {
  fill(words, key, first, blocks, out, Normal());
}

void fill_uniform(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                  size_t blocks, float* out) {
  fill(words, key, first, blocks, out, Uniform());
}

}  // namespace coppice::detail::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace coppice::detail {

HWY_EXPORT(fill_normal);
HWY_EXPORT(fill_uniform);

void fill_normal_blocks(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                        size_t blocks, float* out) {
  HWY_DYNAMIC_DISPATCH(fill_normal)(words, key, first, blocks, out);
}

void fill_uniform_blocks(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t first,
                         size_t blocks, float* out) {
  HWY_DYNAMIC_DISPATCH(fill_uniform)(words, key, first, blocks, out);
}

std::vector<int64_t> simd_targets() { return hwy::SupportedAndGeneratedTargets(); }

void use_simd_target(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace coppice::detail
#endif
