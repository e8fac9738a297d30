#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

#include "coppice/data/token_file.h"
#include "coppice/eval/perplexity.h"

namespace coppice::eval::detail {

/// The windows of a file: whole ones, and a shorter one at the end if the whole file is used.
struct Windows {
  uint64_t whole = 0, rest = 0;  ///< rest: number of predictions in the last, shorter window
};

/// Throws   Error{kUsage} if the file has no token to predict.
Windows windows_of(const data::TokenFile& tokens, const LossSettings& settings);

/// For each token of consecutive windows from token `begin` on, the position in its window where its document starts.
/// [B, S], int64.
at::Tensor document_starts(const data::TokenFile& tokens, uint64_t begin, at::IntArrayRef sizes);

/// Throws   Error{kNonFinite} naming the file and `what`, a mean over its tokens, if that is NaN or infinite.
void require_finite(double value, std::string_view what, const data::TokenFile& tokens);

}  // namespace coppice::eval::detail
