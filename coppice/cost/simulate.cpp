#include "coppice/cost/simulate.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cost/background_detail.h"
#include "coppice/cost/layer_time_detail.h"
#include "coppice/cost/traffic.h"

namespace coppice::cost {
namespace {

using detail::Background;

// Seconds of one exchange of an MoE layer, there and back.
struct ExchangeTimes {
  double forward_s = 0, backward_s = 0;
};

class Simulation {
 public:
  Simulation(const ModelSize& size, const Device& device, const Cluster& cluster, const Parallelism& parallelism,
             const StateBytes& bytes, const StepWork& work)
      : size_(size),
        device_(device),
        cluster_(cluster),
        parallelism_(parallelism),
        bytes_(bytes),
        work_(work),
        tokens_(work.batch_tokens / static_cast<double>(parallelism.data)),
        micro_batches_(micro_batches(work, tokens_)),
        layers_(detail::layer_times(size, device, parallelism, bytes, work, tokens_ / micro_batches_)),
        exchange_(exchange()),
        crosses_(expert_ranks(cluster, parallelism).crosses()) {}

  SimulatedStep run() {
    gather_values();
    for (double i = 1; i <= micro_batches_; ++i) {
      forward();
      backward(i == micro_batches_);
    }
    const double waited = background_.finish();
    out_.reduce_s += waited;
    clock_ += waited;
    out_.hidden_reduce_s = reduce_s_ - out_.reduce_s;
    optimizer();
    out_.total_s = clock_;
    return out_;
  }

 private:
  ExchangeTimes exchange() const {
    if (parallelism_.expert == 1) return {};
    const double tokens = tokens_ / micro_batches_;
    const auto [left, came] = expected_rows(tokens, size_, parallelism_);
    const double rows = std::max(left, came);  // an exchange lasts as long as its busiest direction
    const double vectors =
        work_.once_per_rank ? expected_vectors(tokens, size_.top_k, parallelism_.expert, size_.experts) : rows;
    const RowBytes row{size_.model_dim, bytes_.weight};
    const auto seconds = [&](double vector_count, double other_bytes) {
      return all_to_all_seconds(cluster_, expert_ranks(cluster_, parallelism_),
                                vector_count * static_cast<double>(row.vector()) + other_bytes);
    };
    const auto elsewhere = static_cast<double>(size_.experts - most_experts(size_, parallelism_));
    const double counts_s = seconds(0, elsewhere * RowBytes::kCount);
    return {.forward_s = counts_s + seconds(vectors, rows * RowBytes::kGate) + seconds(vectors, 0),
            .backward_s = seconds(vectors, 0) + seconds(vectors, rows * RowBytes::kGate)};
  }

  // Seconds of sharded collectives for values that all ranks hold, and for those of a layer's experts.
  double sharded(double others, double experts, int64_t value_bytes) const {
    const auto each = static_cast<double>(value_bytes);
    return sharded_seconds(cluster_, all_ranks(cluster_, parallelism_), others * each) +
           sharded_seconds(cluster_, same_expert_ranks(cluster_, parallelism_), experts * each);
  }

  void gather(double others, double experts) {
    const double seconds = parallelism_.zero1 ? sharded(others, experts, bytes_.weight) : 0;
    gathers_.push_back(background_.add(seconds, network_for_all()));
    gather_s_ += seconds;
  }

  bool network_for_all() const { return all_ranks(cluster_, parallelism_).crosses(); }

  // After the optimizer's step of the step before.
  void gather_values() {
    gather(layers_.embedding, 0);
    for (const auto& layer : layers_.all) gather(layer.others, layer.experts);
    gather(layers_.head, 0);
  }

  void reduce(double others, double experts) {
    const double seconds = (parallelism_.zero1 ? 1 : 2) * sharded(others, experts, bytes_.gradient);
    background_.add(seconds, network_for_all());
    reduce_s_ += seconds;
  }

  void compute(double seconds) {
    out_.compute_s += seconds;
    clock_ += seconds;
    background_.pass(seconds);
  }

  void exchange_rows(double seconds) {
    out_.all_to_all_s += seconds;
    clock_ += seconds;
    background_.pass_beside(seconds, crosses_);
  }

  void wait_for_values(size_t which) {
    const double waited = background_.finish(gathers_[which]);
    out_.gather_s += waited;
    clock_ += waited;
  }

  void forward_of(const detail::LayerTime& layer) {
    compute(layer.forward_s);
    if (layer.is_moe) exchange_rows(exchange_.forward_s);
  }

  void forward() {
    wait_for_values(0);
    for (size_t i = 0; i < layers_.all.size(); ++i) {
      wait_for_values(i + 1);
      forward_of(layers_.all[i]);
    }
    wait_for_values(layers_.all.size() + 1);
    out_.hidden_gather_s = gather_s_ - out_.gather_s;
    compute(layers_.head_forward_s);
  }

  void backward(bool is_last) {
    compute(2 * layers_.head_forward_s);
    if (is_last && !layers_.is_tied) reduce(layers_.head, 0);
    for (size_t i = layers_.all.size(); i-- > 0;) {
      const auto& layer = layers_.all[i];
      if (work_.recompute) forward_of(layer);
      compute(2 * layer.forward_s);
      if (layer.is_moe) exchange_rows(exchange_.backward_s);
      if (is_last) reduce(layer.others, layer.experts);
    }
    if (is_last) reduce(layers_.embedding, 0);
  }

  void optimizer() {
    out_.optimizer_s = optimizer_seconds(size_, device_, parallelism_, bytes_);
    clock_ += out_.optimizer_s;
  }

  const ModelSize& size_;
  const Device& device_;
  const Cluster& cluster_;
  const Parallelism& parallelism_;
  const StateBytes& bytes_;
  const StepWork& work_;
  double tokens_, micro_batches_;
  detail::LayerTimes layers_;
  ExchangeTimes exchange_;
  bool crosses_;

  Background background_;
  std::vector<size_t> gathers_;
  SimulatedStep out_;
  double clock_ = 0, reduce_s_ = 0, gather_s_ = 0;
};

}  // namespace

SimulatedStep simulate_step(const ModelSize& size, const Device& device, const Cluster& cluster,
                            const Parallelism& parallelism, const StateBytes& bytes, const StepWork& work) {
  check_cluster(cluster, parallelism);
  const double tokens = work.batch_tokens / static_cast<double>(parallelism.data);
  if (tokens < work.sequence_length) {
    throw Error(ErrorCode::kUsage,
                cat("batch-tokens: ", number_text(work.batch_tokens, 9), " tokens over ", parallelism.data,
                    " ranks are fewer than one sequence of ", number_text(work.sequence_length, 9),
                    " for each (increase --batch-tokens or --gpu-tokens, or decrease --sequence-length)"));
  }
  return Simulation(size, device, cluster, parallelism, bytes, work).run();
}

}  // namespace coppice::cost
