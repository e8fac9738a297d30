#include "coppice/base/rng.h"

#include <algorithm>
#include <numeric>

#include "coppice/base/box_muller_detail.h"
#include "coppice/base/check.h"

namespace coppice {
namespace {

constexpr uint64_t kMaxElements = uint64_t{1} << 40;
constexpr uint64_t kWideBlocks = uint64_t{1} << 39;  // blocks of bits64(); those of bits() lie below
constexpr size_t kLanes =
    32;  // with more than 16 the compiler vectorises the loops over lanes instead of unrolling them
constexpr uint32_t kFactorA = 0xD2511F53, kFactorB = 0xCD9E8D57;

// Four words of kCount counters side by side, so that the compiler vectorises over the lanes.
template <size_t kCount>
struct Words {
  alignas(32) uint32_t w[4][kCount];
};

// Apart from the lower half of the product: the form that the compiler vectorises.
inline uint32_t upper_product(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }

template <size_t kCount>
inline void philox_rounds(Words<kCount>& c, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    for (size_t i = 0; i < kCount; ++i) {
      const uint32_t a = c.w[0][i];
      const uint32_t b = c.w[2][i];
      c.w[0][i] = upper_product(kFactorB, b) ^ c.w[1][i] ^ key[0];
      c.w[1][i] = kFactorB * b;
      c.w[2][i] = upper_product(kFactorA, a) ^ c.w[3][i] ^ key[1];
      c.w[3][i] = kFactorA * a;
    }
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
}

std::array<uint32_t, 4> counter_of(std::array<uint32_t, 4> words, uint64_t block) {
  words[0] = static_cast<uint32_t>(block);
  words[1] |= static_cast<uint32_t>(block >> 32);
  return words;
}

// 4 * kLanes normals of consecutive blocks.
void normals_of_blocks(const std::array<uint32_t, 4>& words, const std::array<uint32_t, 2>& key, uint64_t block,
                       float* out) {
  Words<kLanes> c;
  for (size_t i = 0; i < kLanes; ++i) {
    c.w[0][i] = static_cast<uint32_t>(block + i);
    c.w[1][i] = words[1] | static_cast<uint32_t>((block + i) >> 32);
    c.w[2][i] = words[2];
    c.w[3][i] = words[3];
  }
  philox_rounds(c, key);
  alignas(32) float n[4][kLanes];
  for (size_t half = 0; half < 4; half += 2) {
    for (size_t i = 0; i < kLanes; ++i) {
      const auto pair = detail::box_muller(c.w[half][i], c.w[half + 1][i]);
      n[half][i] = pair.first;
      n[half + 1][i] = pair.second;
    }
  }
  for (size_t i = 0; i < kLanes; ++i) {
    for (size_t word = 0; word < 4; ++word) out[4 * i + word] = n[word][i];
  }
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  Words<1> c{{{counter[0]}, {counter[1]}, {counter[2]}, {counter[3]}}};
  philox_rounds(c, key);
  return {c.w[0][0], c.w[1][0], c.w[2][0], c.w[3][0]};
}

Rng::Rng(const RngKey& key)
    : key_{static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32)},
      counter_{0, key.layer << 8 | key.role << 24, key.parent | key.purpose << 24, key.copy} {
  COPPICE_CHECK(key.layer < 1U << 16, "layer ", key.layer);
  COPPICE_CHECK(key.role < 1U << 8, "role ", key.role);
  COPPICE_CHECK(key.parent < 1U << 24, "parent ", key.parent);
  COPPICE_CHECK(key.purpose < 1U << 8, "purpose ", key.purpose);
}

uint32_t Rng::bits(uint64_t element) const {
  COPPICE_CHECK(element < kMaxElements, "element ", element);
  return philox4x32(counter_of(counter_, element >> 2), key_)[element & 3];
}

uint64_t Rng::bits64(uint64_t element) const {
  COPPICE_CHECK(element < kMaxElements, "element ", element);
  const auto words = philox4x32(counter_of(counter_, kWideBlocks + (element >> 1)), key_);
  const size_t low = (element & 1) * 2;
  return words[low] | uint64_t{words[low + 1]} << 32;
}

double Rng::uniform(uint64_t element) const { return static_cast<double>(bits64(element) >> 11) * 0x1p-53; }

float Rng::normal(uint64_t element) const {
  COPPICE_CHECK(element < kMaxElements, "element ", element);
  const auto words = philox4x32(counter_of(counter_, element >> 2), key_);
  const size_t half = element & 2;
  const auto pair = detail::box_muller(words[half], words[half + 1]);
  return (element & 1) == 0 ? pair.first : pair.second;
}

uint64_t Rng::below(uint64_t element, uint64_t n) const {
  COPPICE_CHECK(n > 0);
  return static_cast<uint64_t>(static_cast<unsigned __int128>(bits64(element)) * n >> 64);
}

void Rng::fill_normal(uint64_t first, float* out, size_t count) const {
  COPPICE_CHECK(first <= kMaxElements && count <= kMaxElements - first, "elements ", first, " + ", count);
  constexpr size_t kAtOnce = 4 * kLanes;
  while (count > 0) {
    const size_t skip = first & 3;
    const size_t take = std::min(count, kAtOnce - skip);
    if (take == kAtOnce) {
      normals_of_blocks(counter_, key_, first >> 2, out);
    } else {
      alignas(32) float some[kAtOnce];
      normals_of_blocks(counter_, key_, first >> 2, some);
      std::copy_n(some + skip, take, out);
    }
    first += take;
    out += take;
    count -= take;
  }
}

std::vector<uint32_t> Rng::permutation(uint32_t n) const {
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0U);
  for (uint32_t i = n; i > 1; --i) std::swap(order[i - 1], order[below(i - 1, i)]);
  return order;
}

}  // namespace coppice
