#include "coppice/grow/summary.h"

#include <cmath>
#include <utility>

#include "coppice/base/text.h"
#include "coppice/grow/exactness.h"
#include "coppice/plan/text.h"

namespace coppice::grow {

ExpansionSummary summary(const families::Model& model, const plan::GrowthPlan& plan) {
  auto config = families::read_config(plan::grown_config(model.config, plan), "config.json of the expanded model",
                                      model.config.family);
  config.moe_layer = model.config.moe_layer;  // some families show it only by their weights
  auto after = families::count_parameters(model, plan.experts_after);
  const int64_t of_one = after.experts / plan.experts_after / plan.split;  // an expert, or a part of one
  after.total -= after.experts - of_one * plan.experts_after;
  after.experts = of_one * plan.experts_after;
  const double read = static_cast<double>(of_one) * config.mean_top_k();
  after.active = after.total - of_one * plan.experts_after + std::llround(read);
  plan::Exactness exactness = growth_exactness(model, plan);
  if (model.stored)
    exactness.reason += cat(" The source counts as its values in bf16: it is quantised with ",
                            model.stored->quantisation, ", and every weight is computed and rounded once.");
  return {.experts_before = plan.experts_before,
          .experts_after = plan.experts_after,
          .parameters_before = families::count_parameters(model),
          .parameters_after = after,
          .top_k_before = model.config.top_k_text(),
          .top_k_after = config.top_k_text(),
          .bytes = expand_bytes(model, plan),
          .exactness = std::move(exactness)};
}

Json ExpansionSummary::to_json() const {
  Json json = Json::object();
  json["experts"] = Json::array({Json(experts_before), Json(experts_after)});
  json["parameters"] = Json::array({Json(parameters_before.total), Json(parameters_after.total)});
  json["active_parameters"] = Json::array({Json(parameters_before.active), Json(parameters_after.active)});
  json["weight_bytes"] = Json::array({Json(bytes.weights_before), Json(bytes.weights_after)});
  json["optimizer_bytes"] = Json::array({Json(bytes.optimizer_before), Json(bytes.optimizer_after)});
  json["exact"] = exactness.known ? Json(exactness.exact) : Json();
  json["exactness"] = exactness.reason;
  return json;
}

std::string summary_text(const ExpansionSummary& s, const families::Model& model, const plan::GrowthPlan& plan) {
  const ExpandBytes& bytes = s.bytes;
  std::string text =
      cat(model.config.family->model_type, ": ", plan.experts_before, " -> ", plan.experts_after, " experts in ",
          plan.layers.size(), " of ", model.config.num_layers, " layers, ", s.top_k_after, " per token ",
          s.top_k_after == s.top_k_before ? "(unchanged)" : cat("instead of ", s.top_k_before), "\n",
          "parameters: ", count_text(static_cast<double>(s.parameters_before.total)), " -> ",
          count_text(static_cast<double>(s.parameters_after.total)), ", active per token ",
          count_text(static_cast<double>(s.parameters_before.active)), " -> ",
          count_text(static_cast<double>(s.parameters_after.active)), "\n",
          "weights: ", bytes_text(bytes.weights_before), " -> ", bytes_text(bytes.weights_after), "\n");
  if (model.stored)
    text += cat("dequantised: ", model.stored->tensors.size(), " matrices, quantised with ", model.stored->quantisation,
                ", are written in bf16\n");
  if (model.config.is_quantised()) text += cat("quantised: ", model.config.quantisation, "\n");
  if (bytes.optimizer_after > 0) {
    text +=
        cat("optimizer state: ", bytes_text(bytes.optimizer_before), " -> ", bytes_text(bytes.optimizer_after), "\n");
  }
  text += cat("methods: ", plan::methods_text(plan), "\n");
  if (!plan.is_undo) text += plan::copies_text(plan);
  return text + s.exactness.reason;
}

}  // namespace coppice::grow
