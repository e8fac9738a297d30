#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/eval/perplexity.h"

namespace coppice::train {

/// The losses on the validation files, and the experts that their tokens were routed to.
struct Validation {
  std::map<std::string, double> loss;          ///< nats per token, by file stem
  std::map<std::string, double> loss_lineage;  ///< with the current lineage-unique routing; empty if there is none
  /// The losses with the routing that the model is trained with.
  const std::map<std::string, double>& in_force() const { return loss_lineage.empty() ? loss : loss_lineage; }
  Json routing;  ///< {stem: {layer: [tokens of each expert]}}, plain top-K; null without MoE
};

/// Validates with plain top-K, which other programs use, and then, if `lineage` is not null, with lineage-unique
/// routing.
Validation validate(const nn::Decoder& model, const std::vector<data::TokenFile>& files,
                    const eval::LossSettings& settings, std::shared_ptr<const nn::LineageRouting> lineage);

/// {stem: loss}.
Json to_json(const std::map<std::string, double>& losses);

/// The name of a file in the metrics.
std::string stem(const data::TokenFile& file);

}  // namespace coppice::train
