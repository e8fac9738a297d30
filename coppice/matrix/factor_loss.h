#pragma once

#include <cstddef>
#include <span>

#include "coppice/io/dtype.h"

namespace coppice::matrix {

/// What values of `dtype` lose when they are multiplied by `factor` and stored again: the largest error, divided by the
/// factor and by the largest value. 0 where it is no more than sums of products in fp32 lose anyway. Values that are not
/// finite are left out.
///
/// Memory   some blocks of 256 KiB; values are not read where the dtype shows that nothing is lost (F32, and BF16 times
///          a power of two).
double factor_loss(io::Dtype dtype, std::span<const std::byte> values, double factor);

}  // namespace coppice::matrix
