#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "coppice/data/token_file.h"

namespace coppice::data {

/// Windows of tokens from weighted sources, in an order that is a pure function of (seed, sample number).
///
/// Each source is cut into windows of `sequence_length` + 1 tokens that overlap by one; each epoch of a source is a new
/// shuffle. The position of a run is one number: the next sample. After any n samples each source has given within 1.5
/// of n times its share.
///
/// Memory   a few words per source, independent of the number of samples and tokens.
/// Threads  any.
class Sampler {
 public:
  /// If `weights` is empty, sources are weighted by their number of windows. Throws Error{kUsage}: a source shorter
  /// than one window, bad weights.
  Sampler(std::vector<TokenFile> sources, std::vector<double> weights, int64_t sequence_length, uint64_t seed);

  struct Window {
    size_t source = 0;
    uint64_t begin = 0;  ///< token
  };
  Window window(uint64_t sample) const;
  /// tokens and targets, each [sequence_length].
  void read(uint64_t sample, std::span<int64_t> tokens, std::span<int64_t> targets) const;
  /// For each token of the window, the position in the window where its document starts, [sequence_length]; 0 if it
  /// starts before.
  void document_starts(uint64_t sample, std::span<int64_t> starts) const;
  /// Windows in one pass over everything.
  uint64_t windows_per_epoch() const;
  int64_t sequence_length() const { return sequence_length_; }
  const TokenFile& source(size_t index) const { return sources_.at(index); }

 private:
  /// How many of the first `samples` go to each side of a split, and so on down to one source.
  std::pair<size_t, uint64_t> pick(uint64_t sample) const;

  std::vector<TokenFile> sources_;
  std::vector<uint64_t> windows_;   // of each source
  std::vector<uint64_t> share_to_;  // [sources + 1] running sums of the shares
  int64_t sequence_length_;
  uint64_t seed_;
};

}  // namespace coppice::data
