#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace coppice {

/// A 64-bit hash: the output of the generator SplitMix64 for the state `x`.
///
/// Source   Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014).
inline uint64_t splitmix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Philox4x32-10: four random 32-bit words for a (key, counter) pair.
///
/// Source   Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011); known answers from Random123.
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// The key of a stream of random numbers. It does not contain tensor names, the order of children, threads, shards or
/// ranks, so none of them can change a bit of the output.
struct RngKey {
  uint64_t seed = 0;
  uint32_t layer = 0;    ///< < 2^16
  uint32_t role = 0;     ///< < 2^8; a families::Role, or a constant of the caller
  uint32_t parent = 0;   ///< < 2^24
  uint32_t copy = 0;     ///< copy number of this parent, 0 = the original
  uint32_t purpose = 0;  ///< < 2^8; what the numbers are for, a constant of the caller
};

/// A random-access stream: element i is a pure function of (key, i). Copyable, stateless, thread-safe.
///
/// Elements i < 2^40. The bits are the same on every processor: log and sincos are own polynomials, and only the
/// exactly rounded sqrt comes from libm.
class Rng {
 public:
  explicit Rng(const RngKey& key);

  uint32_t bits(uint64_t element) const;
  uint64_t bits64(uint64_t element) const;  ///< from other random words than bits()
  double uniform(uint64_t element) const;   ///< [0, 1), the upper 53 bits of bits64()
  float normal(uint64_t element) const;     ///< N(0, 1) by Box-Muller over bits(); a pair (2k, 2k+1) shares one draw
  float signed_uniform(uint64_t element) const;        ///< U(-1, 1) in steps of 2^-23 from bits()
  uint64_t below(uint64_t element, uint64_t n) const;  ///< [0, n) from bits64(); bias below 2^-32 for n < 2^32

  /// Sets out[i] = normal(first + i), with the same bits but several at a time.
  void fill_normal(uint64_t first, float* out, size_t count) const;
  /// Sets out[i] = signed_uniform(first + i), with the same bits but several at a time.
  void fill_signed_uniform(uint64_t first, float* out, size_t count) const;

  /// A uniformly random permutation of 0..n-1 (Fisher-Yates with below()).
  std::vector<uint32_t> permutation(uint32_t n) const;

 private:
  template <class One, class Blocks>
  void fill(uint64_t first, float* out, size_t count, One one, Blocks blocks) const;

  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 4> counter_;  // the rest of the RngKey; 40 bits are left for the element's block
};

}  // namespace coppice
