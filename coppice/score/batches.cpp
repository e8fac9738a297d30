#include "coppice/score/batches.h"

#include <ATen/ops/empty.h>

#include <algorithm>

#include "coppice/nn/host.h"
#include "coppice/nn/layered_decoder.h"

namespace coppice::score {

int64_t Batches::rows() const { return static_cast<int64_t>(count) * windows_a_batch * sampler.sequence_length(); }

std::vector<Pass> Batches::passes() const {
  const int64_t length = sampler.sequence_length(), most = nn::sequences_a_pass(length);
  std::vector<Pass> out;
  int64_t row = 0;
  for (uint64_t batch = 0; batch < count; ++batch) {
    for (int64_t begin = 0; begin < windows_a_batch; begin += most) {
      const int64_t windows = std::min(most, windows_a_batch - begin);
      out.push_back({.window = first + batch * static_cast<uint64_t>(windows_a_batch) + static_cast<uint64_t>(begin),
                     .row = row,
                     .windows = windows,
                     .ends_batch = begin + windows == windows_a_batch});
      row += windows * length;
    }
  }
  return out;
}

PassTokens Batches::read(const Pass& pass) const {
  const int64_t length = sampler.sequence_length();
  PassTokens out{at::empty({pass.windows, length}, at::kLong), at::empty({pass.windows, length}, at::kLong),
                 document_starts(pass)};
  for (int64_t b = 0; b < pass.windows; ++b) {
    const uint64_t window = pass.window + static_cast<uint64_t>(b);
    sampler.read(window, nn::token_row(out.tokens_BS, b), nn::token_row(out.target_BS, b));
  }
  return out;
}

at::Tensor Batches::document_starts(const Pass& pass) const {
  if (!reset_attention) return {};
  const auto start_BS = at::empty({pass.windows, sampler.sequence_length()}, at::kLong);
  for (int64_t b = 0; b < pass.windows; ++b) {
    sampler.document_starts(pass.window + static_cast<uint64_t>(b), nn::token_row(start_BS, b));
  }
  return start_BS;
}

void Batches::backward(const Pass& pass, const at::Tensor& loss) const {
  FiniteLosses losses;
  backward(pass, loss, losses);
  losses.finish();
}

void Batches::backward(const Pass& pass, const at::Tensor& loss, FiniteLosses& losses) const {
  losses.add(loss);
  (loss * (static_cast<double>(pass.windows) / static_cast<double>(windows_a_batch))).backward();
}

}  // namespace coppice::score
