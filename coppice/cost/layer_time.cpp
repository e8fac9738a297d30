// Seconds of each layer's matrix products.

#include <algorithm>
#include <cmath>

#include "coppice/cost/layer_time_detail.h"

namespace coppice::cost::detail {
namespace {

double share(int64_t parameters, int64_t layers) {
  return layers > 0 ? static_cast<double>(parameters) / static_cast<double>(layers) : 0;
}

// A product of `rows` rows with `parameters` weights: the longer one of its FLOPs and the reading of the weights.
class Products {
 public:
  Products(const Device& device, const StepWork& work, int64_t weight_bytes)
      : flops_per_s_(device.flops_per_s * work.utilisation),
        weights_per_s_(device.memory_per_s / static_cast<double>(weight_bytes)),
        tile_rows_(device.tile_rows) {}

  double dense(double rows, double parameters) const {
    return std::max(2 * rows * parameters / flops_per_s_, parameters / weights_per_s_);
  }

  // `pairs` rows that fall on `experts` experts by chance.
  double experts(double pairs, double experts, double parameters_each) const {
    const double busy = experts * (1 - std::exp(-pairs / experts));
    const double rows = std::max(pairs / busy + tile_rows_ / 2, tile_rows_);
    return std::max(2 * busy * rows * parameters_each / flops_per_s_, busy * parameters_each / weights_per_s_);
  }

  double flops(double count) const { return count / flops_per_s_; }

 private:
  double flops_per_s_, weights_per_s_, tile_rows_;
};

}  // namespace

LayerTimes layer_times(const ModelSize& size, const Device& device, const Parallelism& parallelism,
                       const StateBytes& bytes, const StepWork& work, double tokens) {
  const auto& count = size.parameters;
  const auto lookup = static_cast<double>(size.vocab_size * size.model_dim);
  const Products products(device, work, bytes.weight);
  LayerTimes out{.head_forward_s = products.dense(tokens, lookup), .is_tied = is_tied(size)};
  const auto embeddings = static_cast<double>(count.embeddings);
  out.head = out.is_tied ? 0 : embeddings / 2;
  out.embedding = embeddings - out.head;

  const int64_t dense_layers = size.num_layers - size.moe_layers;
  const double each_layer = share(count.attention + count.norms + count.other, size.num_layers);
  const auto local_experts = static_cast<double>(most_experts(size, parallelism));
  const double each_expert =
      size.experts > 0 ? share(count.experts, size.moe_layers) / static_cast<double>(size.experts) : 0;
  const double experts = each_expert * local_experts;
  // The pairs of all ranks of the group that fall on these experts.
  const double pairs =
      size.experts > 0
          ? tokens * size.top_k *
                (static_cast<double>(parallelism.expert) * local_experts / static_cast<double>(size.experts))
          : 0;
  const double scores = 2 * static_cast<double>(size.attention_width) * work.sequence_length * tokens;
  for (int64_t i = 0; i < size.num_layers; ++i) {
    LayerTime layer;
    layer.is_moe = (i + 1) * size.moe_layers / size.num_layers > i * size.moe_layers / size.num_layers;
    layer.others = each_layer + (layer.is_moe ? share(count.routers + count.shared, size.moe_layers)
                                              : share(count.dense, dense_layers));
    layer.experts = layer.is_moe ? experts : 0;
    layer.forward_s = products.dense(tokens, layer.others) + products.flops(scores);
    if (layer.is_moe) {
      layer.forward_s += products.experts(pairs, local_experts, each_expert);
    }
    out.all.push_back(layer);
  }
  return out;
}

}  // namespace coppice::cost::detail
