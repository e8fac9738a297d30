#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "coppice/data/sampler.h"

namespace coppice::step {

/// Sequences of a forward pass, on the host. B sequences, S positions.
struct MicroBatch {
  at::Tensor tokens_BS, target_BS;  ///< int64
  at::Tensor start_BS;              ///< start positions of documents; undefined unless asked for
};

/// Reads the sampler's windows as micro-batches, in pinned memory where `device` has it, and one micro-batch ahead: a
/// device computes while the host reads.
///
/// Memory   one micro-batch besides those it gave away.
class BatchReader {
 public:
  /// `sampler` must outlive this object. With `with_starts`, also where documents start.
  BatchReader(const data::Sampler& sampler, at::Device device, bool with_starts)
      : sampler_(sampler), device_(device), with_starts_(with_starts) {}

  int64_t sequence_length() const { return sampler_.sequence_length(); }

  /// `count` windows from `first_sample` on: those read ahead, if these are they.
  ///
  /// Throws   what the sampler throws.
  MicroBatch take(uint64_t first_sample, int64_t count);
  /// Reads the windows that `take` will be asked for next. What cannot be read, `take` reads again and says why.
  void read_ahead(uint64_t first_sample, int64_t count);

 private:
  struct Ahead {
    uint64_t first_sample = 0;
    int64_t count = 0;
    MicroBatch batch;
  };
  MicroBatch read(uint64_t first_sample, int64_t count) const;

  const data::Sampler& sampler_;
  at::Device device_;
  bool with_starts_;
  std::optional<Ahead> ahead_;
};

}  // namespace coppice::step
