#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"

namespace coppice::plan {

/// One metric for one linear layer of the experts: sums over calibration batches, [E] per layer.
struct MetricSums {
  std::map<int64_t, std::vector<double>> sum;     ///< layer -> [E]
  std::map<int64_t, std::vector<double>> sum_sq;  ///< empty where no variance exists
  bool operator==(const MetricSums&) const = default;
};
struct MetricScores {
  MetricSums fc1, fc2;  ///< gate and up together; down. Routing metrics have the same values in both.
  bool operator==(const MetricScores&) const = default;
};

/// One number per layer and batch: its sum and sum of squares over batches.
struct LayerStatistic {
  std::map<int64_t, double> sum, sum_sq;
  bool operator==(const LayerStatistic&) const = default;
};

/// The contents of scores.json (docs/score.md).
struct Scores {
  std::string model_digest, model_type;
  int64_t layers = 0, experts = 0;
  std::string tokens_digest;
  uint64_t tokens_seen = 0, batch_tokens = 0, batches = 0;
  std::vector<std::string> runs;  ///< for a merge: digests of the merged files; empty for one run
  bool reset_attention = false;   ///< attention stayed within documents
  /// Source of approx_fisher's second moments: "trainer" or "batches"; empty without that metric.
  std::string second_moment;
  std::map<std::string, MetricScores> metrics;
  LayerStatistic gate_concentration;  ///< mean over tokens of 1 / sum of squared gate shares: 1 to K

  /// Throws   Error{kNonFinite} naming metric, layer and expert.
  Json to_json() const;
  /// Throws   Error{kFormat} naming source and key, also for scores without metrics or batches; Error{kNonFinite} for a
  ///          value that is not finite or negative.
  static Scores from_json(const Json& json, std::string_view source);
  static Scores read(const std::filesystem::path& path);
  /// Whether a file begins like the output of to_json(). Throws Error{kNotFound, kIo}.
  static bool is_file(const std::filesystem::path& path);
};

/// The inputs of metrics, accumulated in fp64 per expert and linear layer.
struct UtilityInputs {
  double weight_sq = 0;          ///< sum w^2
  double grad_sq = 0;            ///< sum g^2, g = gradient of the mean token loss over all batches
  double weight_grad = 0;        ///< sum w g
  double batch_grad_sq = 0;      ///< sum over batches of that batch's sum g^2
  double second_moment_sq = -1;  ///< sum v^2 of Adam's second moment; -1 = not available
  uint64_t batches = 0;
  double load = -1;          ///< share of (token, slot) pairs; -1 = not available
  double gate_mass = -1;     ///< sum of final gates before routed scaling; -1 = not available
  double output_error = -1;  ///< mean over batches of the relative squared change of the output; -1 = not available
};

struct UtilityMetric {
  std::string_view name;
  double (*value)(const UtilityInputs&);
  bool (*available)(const UtilityInputs&);
  bool merges;  ///< scores of several runs can be merged
  std::string_view summary, source;
};
std::span<const UtilityMetric> utility_metrics();
const UtilityMetric& utility_metric(std::string_view name);  // Throws Error{kUsage}

/// Merges the scores of several runs over different tokens. The result has only the metrics that can be merged.
///
/// Throws   Error{kUsage}: fewer than two runs, different models, different batch sizes, or a run that appears twice,
///          also inside a merge.
Scores merge_scores(std::span<const Scores> runs);

struct LayerSelection {
  std::string_view name;
  double (*combine)(double fc1_share, double fc2_share, double fc1, double fc2);
  std::string_view summary;
};
std::span<const LayerSelection> layer_selections();
const LayerSelection& layer_selection(std::string_view name);  // Throws Error{kUsage}

/// One score per expert of a layer. Throws Error{kUsage}: a metric the file does not have (lists those it has).
/// Error{kFormat}: missing layer, wrong length. Error{kNonFinite} naming layer and expert.
std::vector<double> layer_scores(const Scores& scores, std::string_view metric, std::string_view layer_selection,
                                 int64_t layer);

}  // namespace coppice::plan
