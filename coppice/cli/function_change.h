#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/match.h"

namespace coppice::cli {

struct FunctionSettings {
  std::filesystem::path tokens;
  uint64_t max_tokens = 16384;
  std::optional<int64_t> sequence_length;  ///< by default 256, or the models' positions if they have fewer
  uint64_t max_memory_bytes = 0;           ///< for both models; 0: half of the machine's
};

/// What a model computes that another did not.
struct FunctionChange {
  uint64_t tokens = 0;
  double loss_before = 0, loss_after = 0;  ///< mean nats per token
  double kl = 0;                           ///< mean of KL(before || after), nats
  double top_1 = 0;                        ///< share of predictions with the same first token
  double largest_difference = 0, largest_logit = 0;
  std::optional<double> effective_top_k;  ///< different parents a token, mean over tokens and layers
  std::optional<double> ties;  ///< share of a layer's tokens for which an expert left out scored as one that was chosen
  Json to_json() const;
  std::string text() const;
};

/// Runs both over the first tokens of a file, in f32. `parents` of the experts, by layer; empty if they are none's.
///
/// Memory   as told, both models in turns where they do not fit.
/// Throws   Error{kUnsupported} in the core build, and for what coppice cannot compute; Error{kUsage}: vocabularies of
///          two sizes, no token to predict, a sequence length past the models'.
FunctionChange function_change(const families::Model& before, const families::Model& after,
                               const std::map<int64_t, std::vector<int64_t>>& parents,
                               const FunctionSettings& settings);

}  // namespace coppice::cli
