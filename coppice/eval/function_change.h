#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/match.h"

namespace coppice::eval {

struct FunctionSettings {
  std::filesystem::path tokens;
  uint64_t max_tokens = 16384;
  std::optional<int64_t> sequence_length;  ///< default: 256, or the models' maximum length if that is less
  uint64_t max_memory_bytes = 0;           ///< for both models; 0: half of the device's
  std::string device = "auto";             ///< as nn::compute_device takes it
};

/// How the outputs of two models differ.
struct FunctionChange {
  uint64_t tokens = 0;
  double loss_before = 0, loss_after = 0;  ///< mean nats per token
  double kl = 0;                           ///< mean of KL(before || after), nats
  double top_1 = 0;                        ///< share of predictions with the same first token
  double largest_difference = 0, largest_logit = 0;
  std::optional<double> effective_top_k;  ///< number of different parents per token, mean over tokens and layers
  /// Share of tokens for which an expert that was not chosen has the same score as one that was; mean over layers.
  std::optional<double> ties;
  Json to_json() const;
  std::string to_text() const;
};

/// Runs both models on the first tokens of a file, in f32. `parents` of the experts, by layer; empty if the experts
/// have no parents.
///
/// Memory   `max_memory_bytes`; layers are loaded in turns if the models do not fit.
/// Throws   Error{kUnsupported} for what coppice cannot compute; Error{kUsage}: the vocabularies
///          differ in size, there is no token to predict, or the sequence is too long for the models.
FunctionChange function_change(const families::Model& before, const families::Model& after,
                               const std::map<int64_t, std::vector<int64_t>>& parents,
                               const FunctionSettings& settings);

}  // namespace coppice::eval
