#include "coppice/step/watch.h"

#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/median.h"
#include "coppice/base/text.h"
#include "coppice/nn/host.h"

namespace coppice::step {
namespace {

constexpr size_t kNorms = 100;      // number of norms for the median
constexpr size_t kLeastNorms = 20;  // least number of norms for a median
constexpr double kSpike = 10;       // times the median: gives a warning

}  // namespace

double Watch::median_norm() const {
  if (norms_.size() < kLeastNorms) return 0;
  return median(norms_);
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
                            " steps (lower optimizer.lr or optimizer.clip if this continues)"),
                        std::move(fields)});
  }
  norms_.push_back(report.grad_norm);
  if (norms_.size() > kNorms) norms_.erase(norms_.begin());

  for (const auto& [layer, load] : report.layers) {
    if (dead_after_ <= 0) break;
    const auto count = nn::host_values<int64_t>(load.count_E);
    auto& idle = idle_[layer];
    idle.resize(count.size(), 0);
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
                        cat("step ", step, ": layer ", layer, ": experts without a token for ", dead_after_,
                            " steps: ", fields["experts"].dump(), " (raise balance.rate or balance.aux_coef)"),
                        std::move(fields)});
  }
  return warnings;
}

Json Watch::memory() const {
  Json out = Json::object();
  out["grad_norms"] = Json::array_of(norms_);
  out["idle"] = Json::object();
  for (const auto& [layer, steps] : idle_) out["idle"][std::to_string(layer)] = Json::array_of(steps);
  return out;
}

void Watch::restore(const Json& memory, const families::ModelConfig& config) {
  const auto refuse = [](const std::string& message) { throw Error(ErrorCode::kFormat, cat("'watch': ", message)); };
  norms_.clear();
  idle_.clear();
  for (const Json& norm : memory.at("grad_norms").items()) {
    const double value = norm.as_double();
    if (!std::isfinite(value) || value < 0) refuse(cat("a gradient norm of ", value, "; wanted 0 or more"));
    norms_.push_back(value);
  }
  if (norms_.size() > kNorms) refuse(cat(norms_.size(), " gradient norms; wanted at most ", kNorms));
  const Json& idle = memory.at("idle");
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const Json* const steps = idle.find(std::to_string(layer));
    if (steps == nullptr) continue;
    auto& of_layer = idle_[layer];
    for (const Json& count : steps->items()) of_layer.push_back(count.as_int());
    const bool fits = config.moe_layer[static_cast<size_t>(layer)] &&
                      of_layer.size() == static_cast<size_t>(config.num_experts) &&
                      std::ranges::all_of(of_layer, [](int64_t count) { return count >= 0; });
    if (!fits) {
      refuse(cat("steps without a token of layer ", layer, ": found ", steps->dump(), "; wanted ", config.num_experts,
                 " counts of an MoE layer"));
    }
  }
  if (idle_.size() != idle.members().size()) refuse("has a layer that the model does not have");
}

}  // namespace coppice::step
