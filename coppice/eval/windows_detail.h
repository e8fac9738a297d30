#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "coppice/data/token_file.h"
#include "coppice/eval/perplexity.h"

namespace coppice::eval::detail {

/// Where the windows of a file lie: whole ones, and a shorter one at the end if the whole file is asked for.
struct Windows {
  uint64_t whole = 0, rest = 0;  ///< rest: predictions of the last, short window
};

/// Throws   Error{kUsage} if the file has no token to predict.
Windows windows_of(const data::TokenFile& tokens, const LossSettings& settings);

/// Of each token of consecutive windows from token `begin` on, where in its window its document starts. [B, S], int64.
at::Tensor document_starts(const data::TokenFile& tokens, uint64_t begin, at::IntArrayRef sizes);

/// Throws   Error{kNonFinite} naming the file and `what`, a mean over its tokens, if that is NaN or infinite.
void require_finite(double value, std::string_view what, const data::TokenFile& tokens);

}  // namespace coppice::eval::detail
