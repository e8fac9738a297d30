#include "coppice/cost/traffic.h"

#include <cmath>

#include "coppice/base/check.h"

namespace coppice::cost {

uint64_t sharded_bytes(std::span<const int64_t> buckets, int64_t ranks, int64_t value_bytes) {
  COPPICE_CHECK(ranks >= 1 && value_bytes >= 0, "ranks or bytes of a value");
  uint64_t shard_values = 0;
  for (const int64_t values : buckets) {
    COPPICE_CHECK(values >= 0, "a bucket of fewer than 0 values");
    const int64_t unit = ranks * kShardAlign;
    shard_values += static_cast<uint64_t>((values + unit - 1) / unit * kShardAlign);
  }
  return shard_values * static_cast<uint64_t>(ranks - 1) * static_cast<uint64_t>(value_bytes);
}

uint64_t exchange_bytes(const RowBytes& row, int64_t experts_elsewhere, std::span<const ExchangedRows> exchanges) {
  uint64_t bytes = 0;
  for (const auto& [left, came] : exchanges) {
    COPPICE_CHECK(left >= 0 && came >= 0, "fewer than 0 rows");
    bytes += static_cast<uint64_t>(left * row.of_token() + came * row.of_expert() + row.of_counts(experts_elsewhere));
  }
  return bytes;
}

ExpectedRows expected_rows(double tokens, const ModelSize& size, const Parallelism& parallelism) {
  if (parallelism.expert == 1) return {};
  const int64_t here = most_experts(size, parallelism);
  const double pairs_of_expert = tokens * size.top_k / static_cast<double>(size.experts);
  return {.left = pairs_of_expert * static_cast<double>(size.experts - here),
          .came = pairs_of_expert * static_cast<double>((parallelism.expert - 1) * here)};
}

double expected_vectors(double tokens, double top_k, int64_t ranks, int64_t experts) {
  // 1 - (share of the ways to choose K experts that avoid one rank's), with factors for a fraction of a slot.
  const auto n = static_cast<double>(ranks), e = static_cast<double>(experts);
  double avoids = 1;
  for (double slot = 0; slot < top_k; slot += 1) {
    const double chance = std::fmax(0, e - e / n - slot) / (e - slot);
    avoids *= std::pow(chance, std::fmin(1, top_k - slot));
  }
  return tokens * (n - 1) * (1 - avoids);
}

double all_to_all_bytes(const ModelSize& size, const Parallelism& parallelism, const Exchange& exchange) {
  const RowBytes row{size.model_dim, exchange.activation_bytes, exchange.recompute};
  const auto [left, came] = expected_rows(1, size, parallelism);
  double bytes = left * static_cast<double>(row.of_token()) + came * static_cast<double>(row.of_expert());
  if (exchange.once_per_rank) {
    const double vectors = expected_vectors(1, size.top_k, parallelism.expert, size.experts);
    const auto half = static_cast<double>((row.forwards() + 1) * row.vector());  // of all transfers, each way
    bytes += (2 * vectors - left - came) * half;
  }
  return static_cast<double>(size.moe_layers) * bytes;
}

Traffic expected_traffic(const ModelSize& size, const Parallelism& parallelism, const StateBytes& bytes, double tokens,
                         const Exchange& exchange) {
  const auto [experts, others] = local_parameters(size, parallelism);
  const auto ranks = static_cast<double>(parallelism.data), groups = static_cast<double>(parallelism.expert);
  const auto to_others = [](double values, double n) { return values * (n - 1) / n; };
  const double sharded = to_others(experts, ranks / groups) + to_others(others, ranks);
  const auto sent = [&](int64_t value_bytes) {
    return static_cast<uint64_t>(std::llround(sharded * static_cast<double>(value_bytes)));
  };
  const RowBytes row{size.model_dim, exchange.activation_bytes, exchange.recompute};
  const int64_t elsewhere = size.experts - most_experts(size, parallelism);
  const double counts = exchange.micro_batches * static_cast<double>(size.moe_layers * row.of_counts(elsewhere));
  return {.reduce_scatter = sent(bytes.gradient),
          .all_gather = sent(parallelism.zero1 ? bytes.weight : bytes.gradient),
          .all_to_all =
              static_cast<uint64_t>(std::llround(all_to_all_bytes(size, parallelism, exchange) * tokens + counts))};
}

}  // namespace coppice::cost
