#include "coppice/demo/siblings.h"

#include <cmath>

#include "coppice/base/lane_sum.h"
#include "coppice/step/layer_metrics.h"

namespace coppice::demo {
namespace {

std::vector<float> expert_values(const families::Model& model, int64_t layer, int64_t expert) {
  std::vector<float> values;
  for (const auto role : {families::Role::kExpertGate, families::Role::kExpertUp, families::Role::kExpertDown}) {
    const auto part = model.checkpoint.read_f32(families::tensor_name(model.config, role, layer, expert));
    values.insert(values.end(), part.begin(), part.end());
  }
  return values;
}

/// |a - b| / |a|.
double distance_between(const std::vector<float>& a, const std::vector<float>& b) {
  const double difference = lane_sum<double>(static_cast<int64_t>(a.size()), [&](int64_t i) {
    const auto at = static_cast<size_t>(i);
    const double d = double{a[at]} - double{b[at]};
    return d * d;
  });
  return std::sqrt(difference / dot(a, a));
}

}  // namespace

void measure_siblings(const families::Model& model, const plan::GrowthPlan& plan, SeedResult& result) {
  for (const auto& layer : plan.layers) {
    double cosine = 0, distance = 0;
    int64_t pairs = 0;
    for (int64_t parent = 0; parent < plan.experts_before; ++parent) {
      std::vector<std::vector<float>> siblings;
      for (size_t i = 0; i < layer.children.size(); ++i) {
        if (layer.children[i].parent == parent) {
          siblings.push_back(expert_values(model, layer.layer, static_cast<int64_t>(i)));
        }
      }
      for (size_t a = 0; a < siblings.size(); ++a) {
        for (size_t b = a + 1; b < siblings.size(); ++b) {
          cosine += step::weight_cosine({siblings[a]}, {siblings[b]});
          distance += distance_between(siblings[a], siblings[b]);
          ++pairs;
        }
      }
    }
    if (pairs == 0) continue;
    result.sibling_cosine[layer.layer] = cosine / static_cast<double>(pairs);
    result.sibling_distance[layer.layer] = distance / static_cast<double>(pairs);
  }
}

}  // namespace coppice::demo
