#pragma once

// Sums in 16 fixed lanes: number i is added to lane i mod 16, and the lanes are added in pairs. The bits depend on the
// numbers and their order alone, not on the vector width of the processor.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace coppice {

inline constexpr size_t kSumLanes = 16;
template <class Sum>
using SumLanes = std::array<Sum, kSumLanes>;

/// The sum of the lanes, added in pairs. (Sizes that are constants keep the lanes in registers.)
template <class Sum, size_t kLanes>
Sum joined(const std::array<Sum, kLanes>& lanes) {
  if constexpr (kLanes == 1) {
    return lanes[0];
  } else {
    std::array<Sum, kLanes / 2> half;
    for (size_t lane = 0; lane < half.size(); ++lane) half[lane] = lanes[lane] + lanes[lane + half.size()];
    return joined(half);
  }
}

/// The sum of term(i), i < n, in float or double.
template <class Sum, class Term>
Sum lane_sum(int64_t n, const Term& term) {
  constexpr auto kLanes = static_cast<int64_t>(kSumLanes);
  SumLanes<Sum> lanes{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (int64_t lane = 0; i + lane < n; ++lane) lanes[lane] += term(i + lane);
  return joined(lanes);
}

/// Sum of a * b in double.
inline double dot(std::span<const float> a, std::span<const float> b) {
  return lane_sum<double>(static_cast<int64_t>(a.size()), [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    return double{a[at]} * double{b[at]};
  });
}

/// `lane_sum` of numbers that come one after the other, in double.
class LaneSum {
 public:
  void add(double x) {
    lanes_[count_ % kSumLanes] += x;
    ++count_;
  }

  /// Adds f(values[0]), f(values[1]), ...
  template <class T, class F>
  void add_each(std::span<const T> values, F f) {
    size_t i = 0;
    while (i < values.size() && count_ % kSumLanes != 0) add(f(values[i++]));
    for (; i + kSumLanes <= values.size(); i += kSumLanes) {
      for (size_t lane = 0; lane < kSumLanes; ++lane) lanes_[lane] += f(values[i + lane]);
      count_ += kSumLanes;
    }
    while (i < values.size()) add(f(values[i++]));
  }

  uint64_t count() const { return count_; }

  double total() const { return joined(lanes_); }

  /// 0 for nothing.
  double mean() const { return count_ == 0 ? 0.0 : total() / static_cast<double>(count_); }

 private:
  SumLanes<double> lanes_{};
  uint64_t count_ = 0;
};

}  // namespace coppice
