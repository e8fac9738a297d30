#include "coppice/data/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "coppice/base/check.h"
#include "coppice/base/rng.h"

namespace coppice::data {
namespace {

constexpr uint32_t kSamplerPurpose = 0x5a;
constexpr double kShareScale = 0x1p40;  // shares are integers, so that any position is exact

/// The position of `i` in a keyed random permutation of 0..n-1, without building the permutation.
///
/// Source   Black and Rogaway, Ciphers with Arbitrary Finite Domains (CT-RSA 2002): a Feistel network over the next
///          power of four, applied repeatedly until the result is below n.
uint64_t shuffled(const Rng& rng, uint64_t i, uint64_t n) {
  constexpr uint64_t kRounds = 6;
  const auto half_bits = std::max<size_t>(1, (std::bit_width(n - 1) + 1) / 2);
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  do {
    uint64_t left = i >> half_bits, right = i & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t mixed = left ^ (rng.bits((round << 32) | right) & mask);
      left = right;
      right = mixed;
    }
    i = (left << half_bits) | right;
  } while (i >= n);
  return i;
}

/// round(n * part / whole), exactly.
uint64_t rounded_share(uint64_t n, uint64_t part, uint64_t whole) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>((static_cast<Wide>(n) * part * 2 + whole) / (static_cast<Wide>(whole) * 2));
}

}  // namespace

Sampler::Sampler(std::vector<TokenFile> sources, std::vector<double> weights, int64_t sequence_length, uint64_t seed)
    : sources_(std::move(sources)), sequence_length_(sequence_length), seed_(seed) {
  if (sources_.empty()) throw Error(ErrorCode::kUsage, "no token file to sample from (give at least one)");
  if (sequence_length < 1)
    throw Error(ErrorCode::kUsage, cat("sequence length ", sequence_length, "; wanted at least 1"));
  if (!weights.empty() && weights.size() != sources_.size()) {
    throw Error(ErrorCode::kUsage,
                cat(weights.size(), " weights for ", sources_.size(), " token files (give one per file, or none)"));
  }
  for (const auto& source : sources_) {
    const uint64_t tokens = source.num_tokens();
    if (tokens <= static_cast<uint64_t>(sequence_length)) {
      throw Error(ErrorCode::kUsage, cat(source.path(), ": has ", tokens, " tokens; wanted at least one window, ",
                                         sequence_length + 1, " (give more text or a shorter sequence length)"));
    }
    windows_.push_back((tokens - 1) / static_cast<uint64_t>(sequence_length));
  }
  if (weights.empty()) weights.assign(windows_.begin(), windows_.end());
  double sum = 0;
  for (const double w : weights) {
    if (!(w > 0) || !std::isfinite(w))
      throw Error(ErrorCode::kUsage, cat("weight ", w, " of a token file; wanted a number over 0"));
    sum += w;
  }
  share_to_.push_back(0);
  for (const double w : weights) {
    share_to_.push_back(share_to_.back() +
                        std::max<uint64_t>(1, static_cast<uint64_t>(std::llround(w / sum * kShareScale))));
  }
}

std::pair<size_t, uint64_t> Sampler::pick(uint64_t sample) const {
  size_t first = 0, last = sources_.size();
  while (last - first > 1) {
    const uint64_t low = share_to_[first], whole = share_to_[last] - low;
    // The split nearest to equal halves keeps the error of the nested roundings small.
    size_t middle = first + 1;
    while (middle + 1 < last && 2 * (share_to_[middle + 1] - low) <= whole) ++middle;
    const auto skew = [&](size_t m) {
      const uint64_t twice = 2 * (share_to_[m] - low);
      return twice > whole ? twice - whole : whole - twice;
    };
    if (middle + 1 < last && skew(middle + 1) < skew(middle)) ++middle;
    const uint64_t part = share_to_[middle] - low;
    const uint64_t before = rounded_share(sample, part, whole), after = rounded_share(sample + 1, part, whole);
    if (after > before) {
      last = middle;
      sample = before;
    } else {
      first = middle;
      sample -= before;
    }
  }
  return {first, sample};
}

Sampler::Window Sampler::window(uint64_t sample) const {
  const auto [source, turn] = pick(sample);
  const uint64_t windows = windows_[source], epoch = turn / windows;
  const Rng rng({.seed = seed_,
                 .parent = static_cast<uint32_t>(source),
                 .copy = static_cast<uint32_t>(epoch),
                 .purpose = kSamplerPurpose});
  return {source, shuffled(rng, turn % windows, windows) * static_cast<uint64_t>(sequence_length_)};
}

void Sampler::read(uint64_t sample, std::span<int64_t> tokens, std::span<int64_t> targets) const {
  const auto length = static_cast<size_t>(sequence_length_);
  COPPICE_CHECK(tokens.size() == length && targets.size() == length);
  const Window w = window(sample);
  sources_[w.source].read(w.begin, tokens);
  sources_[w.source].read(w.begin + 1, targets);
}

void Sampler::document_starts(uint64_t sample, std::span<int64_t> starts) const {
  COPPICE_CHECK(starts.size() == static_cast<size_t>(sequence_length_));
  const Window w = window(sample);
  sources_[w.source].document_starts(w.begin, starts);
}

uint64_t Sampler::windows_per_epoch() const { return std::accumulate(windows_.begin(), windows_.end(), uint64_t{0}); }

}  // namespace coppice::data
