#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "coppice/io/dtype.h"

namespace coppice::matrix {

/// What values of `dtype` lose when they are multiplied by `factor` and stored again: the largest error, divided by the
/// factor and by the largest value. 0 where it is not more than sums of products in fp32 lose anyway. Values that are not
/// finite are left out.
///
/// Memory   some blocks of 256 KiB; values are not read where the dtype shows that nothing is lost (F32, and BF16 times
///          a power of two).
double factor_loss(io::Dtype dtype, std::span<const std::byte> values, double factor);

/// Whether stored values times `factor` keep all their digits, but for those near the smallest of their dtype.
bool is_power_of_two(double factor);

/// The tensor that loses most by its factor, of those that were looked at.
class WorstLoss {
 public:
  void look(std::string_view tensor, io::Dtype dtype, std::span<const std::byte> values, double factor);
  /// What is lost, in words; empty if nothing is.
  std::string text() const;

 private:
  std::string tensor_;
  io::Dtype dtype_ = {};
  double factor_ = 1, loss_ = 0;
};

}  // namespace coppice::matrix
