#include <iostream>
#include <optional>
#include <utility>
#include <vector>

#include "coppice/cli/command.h"
#include "coppice/cli/engine.h"
#include "coppice/cost/dense_estimate.h"
#include "coppice/cost/estimate.h"
#include "coppice/families/quantization.h"
#include "coppice/infer/given_family.h"
#include "coppice/report/run_record.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary = "estimate what an expansion would cost and gain, and when it does not pay";

template <class Plan>
void print(const Plan& plan, bool json) {
  std::cout << (json ? plan.to_json().dump(2) + "\n" : plan.to_text());
}

int estimate(const cost::CostOptions& o, const families::Model& model) {
  cost::check_options(o, model.config.is_moe());
  if (!model.config.is_moe()) {
    print(cost::estimate_dense_cost(model, o), o.json);
    return 0;
  }
  std::optional<cost::LocalFit> fit;
  if (!o.fit.empty()) fit = cost::fit_runs(report::read_runs(o.fit));
  std::vector<std::pair<int64_t, double>> measured;
  if (o.measure) measured = measure_steps(model.config, o);
  print(cost::estimate_cost(model, o, measured, fit), o.json);
  return 0;
}

int run(std::span<const std::string_view> args) {
  const auto o = parse<cost::CostOptions>("plan", kSummary, args);
  const infer::GivenFamily given(o.family_file, o.model);
  const families::Model model = families::open_model(o.model, given.family());
  return families::naming_quantisation(model.config, [&] { return estimate(o, model); });
}

}  // namespace

extern const Command kPlan;
const Command kPlan{"plan", kSummary, run};

}  // namespace coppice::cli
