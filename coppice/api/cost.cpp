#include "coppice/api/cost.h"

#include <optional>
#include <utility>
#include <vector>

#include "coppice/cost/dense_estimate.h"
#include "coppice/cost/estimate.h"
#include "coppice/families/quantization.h"
#include "coppice/infer/given_family.h"
#include "coppice/report/run_record.h"

namespace coppice::api {
namespace {

template <class Estimate>
Outcome outcome_of(const Estimate& estimate) {
  return {estimate.to_json(), estimate.to_text()};
}

Outcome estimate(const cost::CostOptions& o, const families::Model& model, const Engine& engine) {
  cost::check_options(o, model.config.is_moe());
  if (!model.config.is_moe()) return outcome_of(cost::estimate_dense_cost(model, o));
  std::optional<cost::LocalFit> fit;
  if (!o.fit.empty()) fit = cost::fit_runs(report::read_runs(o.fit));
  std::vector<std::pair<int64_t, double>> measured;
  if (o.measure) measured = engine.measure_steps(model.config, o);
  return outcome_of(cost::estimate_cost(model, o, measured, fit));
}

}  // namespace

Outcome cost(const cost::CostOptions& o, const Engine& engine) {
  const infer::GivenFamily given(o.family_file, o.model);
  const families::Model model = families::open_model(o.model, given.family());
  return families::naming_quantisation(model.config, [&] { return estimate(o, model, engine); });
}

}  // namespace coppice::api
