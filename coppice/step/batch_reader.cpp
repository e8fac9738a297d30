#include "coppice/step/batch_reader.h"

#include <utility>

#include "coppice/base/error.h"
#include "coppice/nn/host.h"

namespace coppice::step {

MicroBatch BatchReader::read(uint64_t first_sample, int64_t count) const {
  const auto ids = [&] { return nn::host_empty({count, sequence_length()}, at::kLong, device_); };
  MicroBatch out{ids(), ids(), {}};
  if (with_starts_) out.start_BS = ids();
  for (int64_t b = 0; b < count; ++b) {
    const uint64_t sample = first_sample + static_cast<uint64_t>(b);
    sampler_.read(sample, nn::token_row(out.tokens_BS, b), nn::token_row(out.target_BS, b));
    if (with_starts_) sampler_.document_starts(sample, nn::token_row(out.start_BS, b));
  }
  return out;
}

MicroBatch BatchReader::take(uint64_t first_sample, int64_t count) {
  const auto ahead = std::exchange(ahead_, std::nullopt);
  const bool is_here = ahead && ahead->first_sample == first_sample && ahead->count == count;
  return is_here ? ahead->batch : read(first_sample, count);
}

void BatchReader::read_ahead(uint64_t first_sample, int64_t count) {
  try {
    ahead_ = {first_sample, count, read(first_sample, count)};
  } catch (const Error&) {
    ahead_.reset();
  }
}

}  // namespace coppice::step
