#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/cost/closure.h"
#include "coppice/cost/fit.h"
#include "coppice/cost/memory.h"
#include "coppice/cost/options.h"
#include "coppice/cost/scaling.h"
#include "coppice/cost/schedule.h"
#include "coppice/cost/step_time.h"

namespace coppice::cost {

/// A number that the plan uses, and its source.
struct Constant {
  std::string name, value, source;
};

/// Costs and gap closure for one share of continued pre-training. Costs are relative to the run with N experts from the
/// first token.
struct ShareRow {
  double cpt_share = 0;
  double growth_point = 0;  ///< tau / T
  RunCosts costs;           ///< fixed = 1
  double eta = 0;           ///< expected
  double eta_uniform = 0;   ///< for equal numbers of copies; NaN if the curve is the user's own
  std::string remark;
  bool is_yours = false;  ///< the row for --tokens-before and --tokens-after
};

enum class StepBasis { kGiven, kMeasured, kRuns, kSimulated, kEstimate };

struct CostEstimate {
  std::string family;
  ModelSize before, after;
  uint64_t weight_bytes_before = 0, weight_bytes_after = 0;  ///< bytes of the checkpoint on disk
  Parallelism parallelism, parallelism_after;
  StateBytes state;
  DeviceMemory memory_before, memory_after;
  double all_to_all_before = 0, all_to_all_after = 0;  ///< bytes per token

  StepTimes steps;
  StepBasis basis = StepBasis::kEstimate;
  std::string basis_text;
  std::optional<StepEstimate> estimate_before, estimate_after;
  std::optional<Scaling> scaling;                    ///< with --cluster
  std::vector<std::pair<int64_t, double>> measured;  ///< (experts, seconds)

  ClosureCurve closure;
  std::optional<ClosureCurve> uniform_closure;  ///< none if `closure` is the user's own
  std::optional<double> loss_gap;
  std::optional<double> tokens_before, tokens_after;
  double batch_tokens = 0;  ///< tokens per step of `steps`
  std::vector<ShareRow> rows;
  std::vector<std::string> does_not_pay, when, fit_notes;
  std::vector<Constant> constants;

  Json to_json() const;
  std::string to_text() const;
};

/// Estimates costs and gains of expanding an MoE model. `measured`: step times from --measure, for two or more numbers
/// of experts.
///
/// Memory   headers only.
/// Throws   Error{kUsage, kUnsupported} as `expand` would for the same number of experts; Error{kUsage} for options
///          that are not valid.
CostEstimate estimate_cost(const families::Model& model, const CostOptions& options,
                           const std::vector<std::pair<int64_t, double>>& measured, const std::optional<LocalFit>& fit);

/// The expected closure on one line, for other commands that print a plan: "25 % of continued pre-training 61 %, ...".
std::string closure_summary();

}  // namespace coppice::cost
