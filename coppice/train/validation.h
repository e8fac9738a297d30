#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/eval/perplexity.h"

namespace coppice::train {

/// Losses over the validation files, and which experts their tokens went to.
struct Validation {
  std::map<std::string, double> loss;          ///< nats per token, by file stem
  std::map<std::string, double> loss_lineage;  ///< under the lineage routing in force; empty where there is none
  /// Those of the routing that the model is trained with.
  const std::map<std::string, double>& in_force() const { return loss_lineage.empty() ? loss : loss_lineage; }
  Json routing;  ///< {stem: {layer: [tokens of each expert]}}, plain top-K; null without MoE
};

/// Plain top-K first, which is what others will compute; then, if `lineage` is not null, under lineage routing.
Validation validate(const nn::Decoder& model, const std::vector<data::TokenFile>& files,
                    const eval::LossSettings& settings, std::shared_ptr<const nn::LineageRouting> lineage);

/// {stem: loss}.
Json to_json(const std::map<std::string, double>& losses);

/// The name under which a file's loss goes.
std::string stem(const data::TokenFile& file);

}  // namespace coppice::train
