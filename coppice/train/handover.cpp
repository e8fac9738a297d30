#include "coppice/train/handover.h"

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/model_directory.h"
#include "coppice/plan/lineage.h"

namespace coppice::train {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorCode::kUsage, message); }

HandoverPolicy policy_named(std::string_view name) {
  if (name == "none") return HandoverPolicy::kNone;
  if (name == "release") return HandoverPolicy::kRelease;
  if (name == "keep") return HandoverPolicy::kKeep;
  if (name == "dormant") return HandoverPolicy::kDormant;
  refuse(cat("handover.policy: '", name, "' is unknown",
             suggestion(name, std::vector<std::string>{"none", "release", "keep", "dormant"})));
}

}  // namespace

Handover Handover::from_options(std::string_view policy, int64_t steps) {
  const Handover out{policy_named(policy), steps};
  const bool releases = out.policy == HandoverPolicy::kRelease;
  if (releases && steps < 1)
    refuse(cat("handover.steps: ", steps, "; wanted the number of steps of the release, 1 or more"));
  if (steps < 0) refuse(cat("handover.steps: ", steps, "; wanted 0 or more"));
  if (!releases && out.policy != HandoverPolicy::kDormant && steps != 0) {
    refuse(cat("handover.steps: ", steps, " has no effect with the policy '", policy, "' (leave it out)"));
  }
  return out;
}

double Handover::share(int64_t since) const {
  if (policy == HandoverPolicy::kKeep) return 1;
  if (policy != HandoverPolicy::kRelease) return 0;
  return std::max(0.0, static_cast<double>(steps + 1 - since) / static_cast<double>(steps));
}

std::shared_ptr<const nn::LineageRouting> lineage_routing(const std::optional<Json>& lineage, double share,
                                                          uint64_t seed) {
  if (share <= 0) return nullptr;
  const auto parents = lineage ? plan::newest_parents(*lineage) : std::nullopt;
  if (!parents) {
    refuse(cat("handover.policy: the model was not expanded (", io::kLineageFile,
               " records no expansion); wanted a model that `coppice expand` made, or a [[growth]]"));
  }
  const Json& step = lineage->at("steps").items().back();
  if (step.find("top_k_factor") != nullptr || step.find("split") != nullptr) {
    refuse(
        "handover.policy: the newest expansion also changed top-K and needs no handover (leave it "
        "out)");
  }
  const auto of_experts = std::make_shared<nn::Lineage>(*parents, step.at("experts").items()[0].as_int());
  return std::make_shared<nn::LineageRouting>(of_experts, share, seed);
}

void put_copies_to_sleep(plan::GrowthPlan& plan, const nn::Decoder& model) {
  const auto& routing = model.config().routing;
  if (!routing.has_selection_bias || routing.gate != families::GateFunction::kSigmoidTopK) {
    refuse(cat("handover.policy: 'dormant' requires a selection bias on sigmoid scores, which ",
               model.config().family->model_type, " does not have (use release)"));
  }
  for (auto& layer : plan.layers) layer.router_init = methods::MethodChoice{"dormant", {}};
}

}  // namespace coppice::train
