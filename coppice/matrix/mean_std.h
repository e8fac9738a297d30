#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "coppice/base/lane_sum.h"

namespace coppice::matrix {

struct MeanStd {
  double mean = 0;
  double std = 0;  ///< standard deviation of the population
};

/// Sums of x - origin and of its square over the same lanes as LaneSum, in one pass.
class LaneMoments {
 public:
  template <class T>
  void add_each(std::span<const T> values) {
    if (values.empty()) return;
    if (count_ == 0) origin_ = static_cast<double>(values.front());
    size_t i = 0;
    while (i < values.size() && count_ % kSumLanes != 0) add(values[i++]);
    const double origin = origin_;
    SumLanes<double> sums = sums_, squares = squares_;  // in registers
    for (; i + kSumLanes <= values.size(); i += kSumLanes) {
      for (size_t lane = 0; lane < kSumLanes; ++lane) {
        const double d = static_cast<double>(values[i + lane]) - origin;
        sums[lane] += d;
        squares[lane] += d * d;
      }
      count_ += kSumLanes;
    }
    sums_ = sums;
    squares_ = squares;
    while (i < values.size()) add(values[i++]);
  }

  MeanStd mean_std() const {
    if (count_ == 0) return {};
    const auto count = static_cast<double>(count_);
    const double mean = joined(sums_) / count;
    return {origin_ + mean, std::sqrt(std::max(joined(squares_) / count - mean * mean, 0.0))};
  }

 private:
  template <class T>
  void add(T x) {
    const double d = static_cast<double>(x) - origin_;
    sums_[count_ % kSumLanes] += d;
    squares_[count_ % kSumLanes] += d * d;
    ++count_;
  }

  SumLanes<double> sums_{}, squares_{};
  uint64_t count_ = 0;
  double origin_ = 0;  // the first number, so that no precision is lost if all are nearly equal
};

/// Mean and population standard deviation of the numbers that `visit` passes on, in one pass in fp64; exact if all
/// numbers are equal.
///
/// visit(f) calls f(std::span<const T>) any number of times.
template <class T, class Visit>
MeanStd mean_std(Visit visit) {
  LaneMoments moments;
  visit([&](std::span<const T> values) { moments.add_each(values); });
  return moments.mean_std();
}

template <class T>
MeanStd mean_std(std::span<const T> values) {
  LaneMoments moments;
  moments.add_each(values);
  return moments.mean_std();
}

}  // namespace coppice::matrix
