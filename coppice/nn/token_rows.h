#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

namespace coppice::nn {

/// Sequence `b` of a batch, to be filled.
///
/// Shapes   ids_BS [B, S] int64, contiguous; returns S elements of it.
inline std::span<int64_t> token_row(const at::Tensor& ids_BS, int64_t b) {
  const int64_t length = ids_BS.size(1);
  return {ids_BS.mutable_data_ptr<int64_t>() + b * length, static_cast<size_t>(length)};
}

}  // namespace coppice::nn
