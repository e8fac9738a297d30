#include "coppice/score/finite_losses.h"

#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/nn/host.h"

namespace coppice::score {
namespace {

constexpr int64_t kPassesAReading = 16;

}  // namespace

void FiniteLosses::add(const at::Tensor& loss) {
  const auto value = loss.detach().to(at::kDouble);
  sum_ = sum_.defined() ? sum_ + value : value;
  if (++count_ == kPassesAReading) finish();
}

void FiniteLosses::finish() {
  if (count_ == 0) return;
  const double sum = nn::number(sum_);
  sum_.reset();
  count_ = 0;
  if (std::isfinite(sum)) return;
  throw Error(ErrorCode::kNonFinite, cat("score: the loss over the calibration tokens is ", sum,
                                         "; wanted a finite one (check the model with `coppice eval`)"));
}

}  // namespace coppice::score
