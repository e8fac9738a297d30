#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

namespace coppice::upcycle {

/// A sum in fp64 over 16 virtual lanes: the i-th number added goes to lane i mod 16, lanes are joined pairwise. The
/// bits depend on the numbers and their order alone, not on the vector width of the processor.
class LaneSum {
 public:
  void add(double x) {
    lanes_[count_ % kLanes] += x;
    ++count_;
  }

  /// Adds f(values[0]), f(values[1]), ...
  template <class T, class F>
  void add_each(std::span<const T> values, F f) {
    size_t i = 0;
    while (i < values.size() && count_ % kLanes != 0) add(f(values[i++]));
    for (; i + kLanes <= values.size(); i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) lanes_[lane] += f(values[i + lane]);
      count_ += kLanes;
    }
    while (i < values.size()) add(f(values[i++]));
  }

  uint64_t count() const { return count_; }

  double total() const {
    auto lanes = lanes_;
    for (size_t half = kLanes / 2; half > 0; half /= 2) {
      for (size_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    }
    return lanes[0];
  }

  /// 0 for nothing.
  double mean() const { return count_ == 0 ? 0.0 : total() / static_cast<double>(count_); }

 private:
  static constexpr size_t kLanes = 16;
  std::array<double, kLanes> lanes_{};
  uint64_t count_ = 0;
};

struct MeanStd {
  double mean = 0;
  double std = 0;  ///< of the population
};

/// Mean and population standard deviation of whatever `visit` passes on; it is called twice and must pass the same
/// numbers.
///
/// visit(f) calls f(std::span<const T>) any number of times.
template <class T, class Visit>
MeanStd mean_std(Visit visit) {
  LaneSum sum;
  visit([&](std::span<const T> values) { sum.add_each(values, [](T x) { return static_cast<double>(x); }); });
  const double mean = sum.mean();
  LaneSum squares;
  visit([&](std::span<const T> values) {
    squares.add_each(values, [mean](T x) {
      const double d = static_cast<double>(x) - mean;
      return d * d;
    });
  });
  return {mean, std::sqrt(squares.mean())};
}

template <class T>
MeanStd mean_std(std::span<const T> values) {
  return mean_std<T>([values](auto f) { f(values); });
}

}  // namespace coppice::upcycle
