#include "coppice/score/batches.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/nn/layered_decoder.h"
#include "coppice/nn/token_rows.h"

namespace coppice::score {

int64_t Batches::rows() const { return static_cast<int64_t>(count) * windows_a_batch * sampler.sequence_length(); }

std::vector<Pass> Batches::passes() const {
  const int64_t length = sampler.sequence_length(), most = nn::sequences_a_pass(length);
  std::vector<Pass> out;
  int64_t row = 0;
  for (uint64_t batch = first; batch < first + count; ++batch) {
    for (int64_t begin = 0; begin < windows_a_batch; begin += most) {
      const int64_t windows = std::min(most, windows_a_batch - begin);
      out.push_back({.window = batch * static_cast<uint64_t>(windows_a_batch) + static_cast<uint64_t>(begin),
                     .row = row,
                     .windows = windows,
                     .ends_batch = begin + windows == windows_a_batch});
      row += windows * length;
    }
  }
  return out;
}

void Batches::read(const Pass& pass, at::Tensor& tokens_BS, at::Tensor& target_BS) const {
  const int64_t length = sampler.sequence_length();
  tokens_BS = at::empty({pass.windows, length}, at::kLong);
  target_BS = at::empty({pass.windows, length}, at::kLong);
  for (int64_t b = 0; b < pass.windows; ++b) {
    const uint64_t window = pass.window + static_cast<uint64_t>(b);
    sampler.read(window, nn::token_row(tokens_BS, b), nn::token_row(target_BS, b));
  }
}

void Batches::backward(const Pass& pass, const at::Tensor& loss) const {
  const auto value = static_cast<double>(loss.item<float>());
  if (!std::isfinite(value)) {
    throw Error(ErrorCode::kNonFinite, cat("score: the loss over the calibration tokens is ", value,
                                           "; wanted a finite one (check the model with `coppice eval`)"));
  }
  (loss * (static_cast<double>(pass.windows) / static_cast<double>(windows_a_batch))).backward();
}

}  // namespace coppice::score
