#include "coppice/train/run_metrics.h"

#include <optional>
#include <string_view>

#include "coppice/base/text.h"
#include "coppice/step/divided_state.h"
#include "coppice/step/layer_metrics.h"

namespace coppice::train {
namespace {

/// One metric of every layer that has it, then their mean.
class PerLayer {
 public:
  explicit PerLayer(std::string_view name) : name_(name) {}

  void add(int64_t layer, std::optional<double> value) {
    if (value) values_.emplace_back(layer, *value);
  }

  void append_to(std::vector<Scalar>& out) const {
    if (values_.empty()) return;
    double sum = 0;
    for (const auto& [layer, value] : values_) sum += value;
    out.emplace_back(cat(name_, "/mean"), sum / static_cast<double>(values_.size()));
    for (const auto& [layer, value] : values_) out.emplace_back(cat("layer/", layer, "/", name_), value);
  }

 private:
  std::string_view name_;
  std::vector<std::pair<int64_t, double>> values_;
};

}  // namespace

std::vector<Scalar> load_scalars(const step::StepReport& report,
                                 const std::map<int64_t, step::SiblingRouting>& siblings) {
  PerLayer violation("maxvio"), entropy("load_entropy"), dead("dead_share"), top_k("effective_top_k"),
      overlap("routing_overlap");
  for (const auto& [layer, load] : report.layers) {
    violation.add(layer, step::max_violation(load.count_E));
    entropy.add(layer, step::load_entropy(load.count_E));
    dead.add(layer, step::dead_share(load.count_E));
  }
  for (const auto& [layer, routing] : siblings) {
    top_k.add(layer, routing.effective_top_k);
    overlap.add(layer, routing.overlap);
  }
  std::vector<Scalar> out;
  for (const PerLayer* metric : {&violation, &entropy, &dead, &top_k, &overlap}) metric->append_to(out);
  return out;
}

std::vector<Scalar> sibling_scalars(const nn::Decoder& model, const step::Optimizer& optimizer,
                                    const Parents& parents) {
  PerLayer cosine("sibling_cosine");
  for (const auto& [layer, of_layer] : parents) {
    const auto master = [&](families::Role role) {
      const auto& found = nn::find_parameter(model.parameters(), role, layer);
      return step::master_on_first_rank(optimizer, model.parameters(),
                                        static_cast<size_t>(&found - model.parameters().data()));
    };
    const at::Tensor fc1 = master(families::Role::kExpertGate), fc2 = master(families::Role::kExpertDown);
    if (fc1.numel() > 0) cosine.add(layer, step::sibling_cosine(fc1, fc2, of_layer));
  }
  std::vector<Scalar> out;
  cosine.append_to(out);
  return out;
}

}  // namespace coppice::train
