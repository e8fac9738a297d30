#include "coppice/train/validation.h"

namespace coppice::train {

std::string stem(const data::TokenFile& file) { return file.path().filename().string(); }

Json to_json(const std::map<std::string, double>& losses) {
  Json out = Json::object();
  for (const auto& [name, loss] : losses) out[name] = loss;
  return out;
}

Validation validate(const nn::Decoder& model, const std::vector<data::TokenFile>& files,
                    const eval::LossSettings& settings, std::shared_ptr<const nn::LineageRouting> lineage) {
  Validation out;
  eval::LossSettings by_lineage = settings;
  by_lineage.lineage = std::move(lineage);
  for (const auto& file : files) {
    const auto plain = eval::token_loss(model, file, settings);
    out.loss[stem(file)] = plain.loss;
    for (size_t i = 0; i < plain.moe_layers.size(); ++i) {
      out.routing[stem(file)][std::to_string(plain.moe_layers[i])] = Json::array_of(plain.expert_counts[i]);
    }
    if (by_lineage.lineage) out.loss_lineage[stem(file)] = eval::token_loss(model, file, by_lineage).loss;
  }
  return out;
}

}  // namespace coppice::train
