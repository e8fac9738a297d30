#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace coppice::cost::detail {

/// Transfers that run one after the other in the background, while the foreground computes or waits.
class Background {
 public:
  /// Appends a transfer; returns its number.
  size_t add(double seconds, bool uses_network) {
    transfers_.push_back({seconds, uses_network});
    return transfers_.size() - 1;
  }

  /// The foreground is busy for `seconds` without using a link.
  void pass(double seconds) {
    for (; first_ < transfers_.size() && seconds > 0; ++first_) {
      double& left = transfers_[first_].left_s;
      const double done = std::min(left, seconds);
      left -= done;
      seconds -= done;
      if (left > 0) return;
    }
  }

  /// The foreground sends something for `seconds`, over the network or within nodes. A transfer over the same kind of
  /// link stands still; the foreground goes first.
  void pass_beside(double seconds, bool uses_network) {
    for (; first_ < transfers_.size() && seconds > 0; ++first_) {
      Transfer& transfer = transfers_[first_];
      if (transfer.left_s > 0 && transfer.uses_network == uses_network) return;
      const double done = std::min(transfer.left_s, seconds);
      transfer.left_s -= done;
      seconds -= done;
      if (transfer.left_s > 0) return;
    }
  }

  /// Waits until transfer `which` and all before it are done; returns the seconds that this took.
  double finish(size_t which) {
    double waited = 0;
    for (; first_ <= which && first_ < transfers_.size(); ++first_) {
      waited += transfers_[first_].left_s;
      transfers_[first_].left_s = 0;
    }
    return waited;
  }
  double finish() { return transfers_.empty() ? 0 : finish(transfers_.size() - 1); }

 private:
  struct Transfer {
    double left_s = 0;
    bool uses_network = false;
  };
  std::vector<Transfer> transfers_;
  size_t first_ = 0;  ///< the first that is not done
};

}  // namespace coppice::cost::detail
