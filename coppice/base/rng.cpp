#include "coppice/base/rng.h"

#include <numeric>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/rng_detail.h"

namespace coppice {
namespace {

constexpr uint64_t kMaxElements = uint64_t{1} << 40;
constexpr uint64_t kWideBlocks = uint64_t{1} << 39;  // blocks of bits64(); those of bits() lie below
constexpr uint32_t kFactorA = 0xD2511F53, kFactorB = 0xCD9E8D57;

uint32_t upper_product(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }

std::array<uint32_t, 4> counter_of(std::array<uint32_t, 4> words, uint64_t block) {
  words[0] = static_cast<uint32_t>(block);
  words[1] |= static_cast<uint32_t>(block >> 32);
  return words;
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  auto& [c0, c1, c2, c3] = counter;
  for (int round = 0; round < 10; ++round) {
    const uint32_t a = c0, b = c2;
    c0 = upper_product(kFactorB, b) ^ c1 ^ key[0];
    c1 = kFactorB * b;
    c2 = upper_product(kFactorA, a) ^ c3 ^ key[1];
    c3 = kFactorA * a;
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
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

float Rng::signed_uniform(uint64_t element) const { return detail::signed_uniform(bits(element)); }

template <class One, class Blocks>
void Rng::fill(uint64_t first, float* out, size_t count, One one, Blocks blocks) const {
  COPPICE_CHECK(first <= kMaxElements && count <= kMaxElements - first, "elements ", first, " + ", count);
  for (; count > 0 && (first & 3) != 0; --count) *out++ = one(first++);
  const size_t whole = count / 4;
  blocks(counter_, key_, first >> 2, whole, out);
  for (size_t i = 4 * whole; i < count; ++i) out[i] = one(first + i);
}

void Rng::fill_normal(uint64_t first, float* out, size_t count) const {
  fill(first, out, count, [this](uint64_t element) { return normal(element); }, detail::fill_normal_blocks);
}

void Rng::fill_signed_uniform(uint64_t first, float* out, size_t count) const {
  fill(first, out, count, [this](uint64_t element) { return signed_uniform(element); }, detail::fill_uniform_blocks);
}

std::vector<uint32_t> Rng::permutation(uint32_t n) const {
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0U);
  for (uint32_t i = n; i > 1; --i) std::swap(order[i - 1], order[below(i - 1, i)]);
  return order;
}

}  // namespace coppice
