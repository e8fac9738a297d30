// A estimate as JSON. `report --estimate` reads it.

#include <cmath>

#include "coppice/base/text.h"
#include "coppice/cost/estimate.h"

namespace coppice::cost {
namespace {

Json pair(const Json& before, const Json& after) { return Json::array({before, after}); }
Json or_null(double value) { return std::isnan(value) ? Json() : Json(value); }
Json or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

Json memory_json(const DeviceMemory& memory) {
  return Json::object({{"weights", memory.weights},
                       {"gradients", memory.gradients},
                       {"optimizer", memory.optimizer},
                       {"total", memory.total()}});
}

Json curve_json(const ClosureCurve& curve) {
  Json points = Json::array();
  for (const auto& [share, eta] : curve.points) points.push_back(Json::array({Json(share), Json(eta)}));
  return Json::object({{"f0", curve.f0},
                       {"rms_error", or_null(curve.rms_error)},
                       {"worst_error", curve.worst_error},
                       {"points", std::move(points)},
                       {"source", curve.source}});
}

Json estimate_json(const StepEstimate& step) {
  return Json::object({{"arithmetic", step.compute_s},
                       {"optimizer", step.optimizer_s},
                       {"all_to_all", step.all_to_all_s},
                       {"gradient_sums", step.reduce_s}});
}

Json row_json(const ShareRow& row) {
  return Json::object({{"cpt_share", row.cpt_share},
                       {"growth_point", row.growth_point},
                       {"upcycled", row.costs.upcycled},
                       {"saving", row.costs.saving()},
                       {"from_checkpoint", row.costs.from_checkpoint},
                       {"sunk_saving", row.costs.sunk_saving()},
                       {"continued", row.costs.continued},
                       {"eta", row.eta},
                       {"eta_uniform", or_null(row.eta_uniform)},
                       {"yours", row.is_yours},
                       {"remark", row.remark}});
}

const char* basis_name(StepBasis basis) {
  switch (basis) {
    case StepBasis::kGiven: return "given";
    case StepBasis::kMeasured: return "measured";
    case StepBasis::kRuns: return "runs";
    case StepBasis::kSimulated: return "simulated";
    case StepBasis::kEstimate: return "estimate";
  }
  return "";
}

Json step_json(const CostEstimate& estimate) {
  Json out = Json::object({{"seconds", pair(estimate.steps.before_s, estimate.steps.after_s)},
                           {"basis", basis_name(estimate.basis)},
                           {"source", estimate.basis_text}});
  if (!estimate.measured.empty()) {
    Json measured = Json::array();
    for (const auto& [experts, seconds] : estimate.measured)
      measured.push_back(Json::array({Json(experts), Json(seconds)}));
    out["measured"] = std::move(measured);
  }
  if (estimate.estimate_before)
    out["estimate"] = pair(estimate_json(*estimate.estimate_before), estimate_json(*estimate.estimate_after));
  return out;
}

}  // namespace

Json CostEstimate::to_json() const {
  Json out = Json::object({{"coppice_cost", 1}, {"family", family}});
  out["experts"] = pair(before.experts, after.experts);
  out["parameters"] = pair(before.parameters.total, after.parameters.total);
  out["active_parameters"] = pair(before.parameters.active, after.parameters.active);
  out["weight_bytes"] = pair(weight_bytes_before, weight_bytes_after);
  out["device_bytes"] = pair(memory_json(memory_before), memory_json(memory_after));
  out["all_to_all_bytes_per_token"] = pair(all_to_all_before, all_to_all_after);
  out["step"] = step_json(*this);
  out["cluster"] = scaling ? scaling->to_json() : Json();
  out["closure"] = curve_json(closure);
  out["uniform_closure"] = uniform_closure ? curve_json(*uniform_closure) : Json();
  out["loss_gap"] = or_null(loss_gap);
  out["tokens"] = pair(or_null(tokens_before), or_null(tokens_after));
  out["shares"] = Json::array();
  for (const ShareRow& row : rows) out["shares"].push_back(row_json(row));
  out["when"] = Json::array_of(when);
  out["does_not_pay"] = Json::array_of(does_not_pay);
  out["fit"] = Json::array_of(fit_notes);
  out["constants"] = Json::array();
  for (const Constant& c : constants) {
    out["constants"].push_back(Json::object({{"name", c.name}, {"value", c.value}, {"source", c.source}}));
  }
  return out;
}

}  // namespace coppice::cost
