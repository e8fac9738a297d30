#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "coppice/io/dtype.h"

namespace coppice::matrix {

/// The precision that values of `dtype` lose when they are multiplied by `factor` and stored again: the largest error,
/// divided by the factor and by the largest value. 0 if it is not larger than rounding errors of sums in fp32. Values
/// that are not finite are ignored.
///
/// Memory   some blocks of 256 KiB; values are not read if the dtype shows that nothing is lost (F32, and BF16 times a
///          power of two).
double factor_loss(io::Dtype dtype, std::span<const std::byte> values, double factor);

/// Whether stored values times `factor` keep all their digits, except values near the smallest of their dtype.
bool is_power_of_two(double factor);

/// The tensor that loses most precision by its factor, among those examined.
class WorstLoss {
 public:
  void look(std::string_view tensor, io::Dtype dtype, std::span<const std::byte> values, double factor);
  /// A description of the loss; empty if there is none.
  std::string text() const;

 private:
  std::string tensor_;
  io::Dtype dtype_ = {};
  double factor_ = 1, loss_ = 0;
};

}  // namespace coppice::matrix
