#include "coppice/convert/summary.h"

#include "coppice/base/text.h"
#include "coppice/convert/lost_digits.h"

namespace coppice::convert {
namespace {

std::string scale_text(const ExpertScale& s) {
  if (s == ExpertScale{}) return "not scaled";
  return cat("gate times ", number_text(s.gate), ", up ", number_text(s.up), ", down ", number_text(s.down));
}

std::string plan_text(const ConversionPlan& plan, const families::ModelConfig& after) {
  const std::string parents = plan.parents > 1 ? cat(plan.parents, " models of ") : std::string();
  std::string text = cat(
      parents, plan.from, " -> ", plan.to, ": ", plan.experts, " experts of width ", after.expert_width, " in ",
      plan.layers.size(), " of ", after.num_layers, " layers, ", plan.top_k, " per token, ", plan.routing, "\n",
      plan.granularity > 1
          ? cat("slices: ", plan.granularity, " of each dense layer, ",
                plan.virtual_groups ? "one router row for all slices of a group" : "each with its own router row", "\n")
          : std::string(),
      "weights: ", scale_text(plan.scale), "; copies made by ", plan.expert_init.to_text(),
      plan.init_all ? ", also the first expert of each slice" : "", "; routers ", plan.router.to_text(), "\n");
  return text;
}

}  // namespace

ConversionSummary summary(const Conversion& conversion, const families::Model& model,
                          const std::optional<ConversionPlan>& plan) {
  const families::ModelConfig& after = conversion.mapping().config;
  ConversionSummary out{.from = std::string(model.config.family->model_type),
                        .to = std::string(after.family->model_type),
                        .experts = after.num_experts,
                        .top_k = after.top_k,
                        .before = families::count_parameters(model),
                        .after = families::count_parameters(after),
                        .losses = conversion.mapping().losses,
                        .plan = plan};
  if (!plan) {
    out.what = cat(model.config.family->model_type, " -> ", after.family->model_type, ": the average of the ",
                   model.config.num_experts, " experts of each MoE layer\n");
    out.exactness = {false, "Not exact: the average of the experts computes another function than the mixture."};
    return out;
  }
  out.what = plan_text(*plan, after);
  const Json* activation = after.json.find("hidden_act");
  out.exactness = conversion_exactness(*plan, activation->as_string(), after.expert_width, after.model_dim);
  if (out.exactness.exact) {
    const std::string lost = lost_by_scale(model, *plan);
    if (!lost.empty()) out.exactness = {false, cat("Not exact: ", lost)};
  }
  const bool is_open = out.exactness.exact || !out.exactness.known;
  if (is_open && !conversion.mapping().losses.empty())
    out.exactness = {false, "Not exact: some parts of the dense model are left out."};
  return out;
}

Json ConversionSummary::to_json() const {
  Json json = Json::object();
  json["families"] = Json::array({Json(from), Json(to)});
  json["experts"] = experts;
  json["top_k"] = top_k;
  json["parameters"] = Json::array({Json(before.total), Json(after.total)});
  json["active_parameters"] = Json::array({Json(before.active), Json(after.active)});
  json["exact"] = exactness.known ? Json(exactness.exact) : Json();
  json["exactness"] = exactness.reason;
  json["losses"] = Json::array_of(losses);
  if (plan) json["plan"] = plan->to_json();
  return json;
}

std::string ConversionSummary::to_text() const {
  std::string text = cat(what, "parameters: ", count_text(static_cast<double>(before.total)), " -> ",
                         count_text(static_cast<double>(after.total)), ", active per token ",
                         count_text(static_cast<double>(after.active)), "\n");
  for (const std::string& loss : losses) text += cat("left out: ", shown(loss), "\n");
  return cat(text, exactness.reason, "\n");
}

}  // namespace coppice::convert
