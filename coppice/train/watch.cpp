#include "coppice/train/watch.h"

#include <algorithm>

#include "coppice/base/text.h"

namespace coppice::train {
namespace {

constexpr size_t kNorms = 100;      // of these the median
constexpr size_t kLeastNorms = 20;  // before there is one
constexpr double kSpike = 10;       // times the median: worth a warning

}  // namespace

double Watch::median_norm() const {
  if (norms_.size() < kLeastNorms) return 0;
  auto sorted = norms_;
  const auto middle = sorted.begin() + static_cast<ptrdiff_t>(sorted.size() / 2);
  std::ranges::nth_element(sorted, middle);
  return *middle;
}

std::vector<Warning> Watch::look(int64_t step, const StepReport& report) {
  std::vector<Warning> warnings;
  if (const double median = median_norm(); median > 0 && report.grad_norm > kSpike * median) {
    Json fields = Json::object();
    fields["grad_norm"] = report.grad_norm;
    fields["median"] = median;
    warnings.push_back({"gradient_spike",
                        cat("step ", step, ": the gradient norm is ", fixed_text(report.grad_norm, 3), ", ",
                            fixed_text(report.grad_norm / median, 0), " times the median of the last ", norms_.size(),
                            " steps (lower optimizer.lr or optimizer.clip if this goes on)"),
                        std::move(fields)});
  }
  norms_.push_back(report.grad_norm);
  if (norms_.size() > kNorms) norms_.erase(norms_.begin());

  for (const auto& [layer, load] : report.layers) {
    if (dead_after_ <= 0) break;
    const auto* const count = load.count_E.const_data_ptr<int64_t>();
    auto& idle = idle_[layer];
    idle.resize(static_cast<size_t>(load.count_E.numel()), 0);
    Json::Array dead;
    for (size_t e = 0; e < idle.size(); ++e) {
      idle[e] = count[e] == 0 ? idle[e] + 1 : 0;
      if (idle[e] == dead_after_) dead.emplace_back(static_cast<int64_t>(e));
    }
    if (dead.empty()) continue;
    Json fields = Json::object();
    fields["layer"] = layer;
    fields["experts"] = Json::array(std::move(dead));
    warnings.push_back({"dead_experts",
                        cat("step ", step, ": layer ", layer, ": no token for ", dead_after_, " steps: experts ",
                            fields["experts"].dump(), " (raise balance.rate or balance.aux_coef)"),
                        std::move(fields)});
  }
  return warnings;
}

}  // namespace coppice::train
