#include "coppice/api/verify.h"
#include "coppice/cli/device.h"
#include "coppice/cli/engine.h"
#include "coppice/eval/function_change.h"
#include "coppice/options/thread_count.h"
#include "coppice/train/measure_steps.h"

namespace coppice::cli {
namespace {

class TorchEngine : public api::Engine {
 public:
  api::Outcome function_change(const families::Model& before, const families::Model& after,
                               const std::map<int64_t, std::vector<int64_t>>& parents,
                               const api::VerifyOptions& options) const override {
    eval::FunctionSettings settings{.tokens = *options.function};
    settings.max_tokens = options.max_tokens.value_or(settings.max_tokens);
    settings.sequence_length = options.sequence_length;
    if (options.max_memory) settings.max_memory_bytes = options.max_memory->bytes;
    settings.device = nn::device_name(use_device(options.device.value_or(settings.device)));
    const eval::FunctionChange change = eval::function_change(before, after, parents, settings);
    return {change.to_json(), change.to_text()};
  }

  std::vector<std::pair<int64_t, double>> measure_steps(const families::ModelConfig& config,
                                                        const cost::CostOptions& options) const override {
    train::MeasureSettings settings{.experts = cost::measured_experts(options, config.num_experts),
                                    .batch_tokens = cost::measured_tokens(options),
                                    .sequence_length = cost::measured_sequence(options),
                                    .threads = thread_count(options.threads)};
    settings.steps = options.measure_steps.value_or(settings.steps);
    settings.dtype = options.measure_dtype.value_or(settings.dtype);
    settings.device = nn::device_name(use_device(options.measure_device.value_or(settings.device), "measure-device"));
    return train::measure_steps(config, settings);
  }
};

}  // namespace

const api::Engine& engine() {
  static const TorchEngine kEngine;
  return kEngine;
}

}  // namespace coppice::cli
