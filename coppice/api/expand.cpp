#include "coppice/api/expand.h"

#include <string>
#include <utility>

#include "coppice/base/text.h"
#include "coppice/cost/estimate.h"
#include "coppice/families/quantization.h"
#include "coppice/grow/dequantised.h"
#include "coppice/grow/expand.h"
#include "coppice/grow/expand_options.h"
#include "coppice/grow/summary.h"
#include "coppice/infer/given_family.h"
#include "coppice/io/output_place.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/text.h"
#include "coppice/plan/undo.h"

namespace coppice::api {
namespace {

/// The summary as comments for the user, then the plan as TOML.
std::string plan_text(const families::Model& model, const plan::GrowthPlan& plan,
                      const grow::ExpansionSummary& summary) {
  std::string text = grow::summary_text(summary, model, plan);
  if (!plan.is_undo && plan.split == 1) text += cat("\n", cost::closure_summary());
  std::string comments;
  for (const std::string& line : split(text, '\n')) comments += cat("# ", line, "\n");
  return plan.is_undo ? comments : cat(comments, "\n", plan::plan_toml(plan));
}

std::string wrote_text(const grow::ExpandOptions& o, const families::Model& model, const plan::GrowthPlan& plan,
                       const output::WrittenModel& done) {
  const families::ModelConfig& config = model.config;
  return cat("wrote ", shown(o.out.string()), ": ", plan.experts_before, " -> ", plan.experts_after, " experts, ",
             output::size_text(done, o.part), done.optimizer_state ? " with optimizer state" : "", "; peak memory ",
             done.peak_rss_bytes >> 20, " MiB\n",
             config.is_quantised()
                 ? cat("Quantised with ", shown(config.quantisation), ": experts are copied byte for byte.\n")
             : model.stored
                 ? cat("Dequantised: ", model.stored->tensors.size(), " matrices of the source, quantised with ",
                       shown(model.stored->quantisation), ", were computed and rounded once to bf16.\n")
                 : std::string());
}

/// The last line: for an expansion whether it is exact, for an undo what is restored.
std::string last_line(const families::Model& model, const plan::GrowthPlan& plan, const grow::ExpansionSummary& summary,
                      const std::filesystem::path& out) {
  if (!plan.is_undo) return summary.exactness.reason;
  return plan::undo_text(model, plan, *plan::read_lineage(model.checkpoint.directory()),
                         families::open_model(out, model.config.family));
}

/// What an expansion would do.
struct Prepared {
  grow::ExpandOptions options;  ///< the recipe applied
  plan::GrowthPlan growth;
  grow::ExpansionSummary summary;
};

Prepared prepare(grow::ExpandOptions o, const families::Model& model) {
  plan::warn_of_unfinished_handover(o.model);
  o = grow::with_recipe(std::move(o), model);
  plan::GrowthPlan plan = grow::requested_plan(o, model);
  grow::ExpansionSummary summary = grow::summary(model, plan);
  grow::check_effects(o, model.config, plan, summary.bytes.optimizer_before > 0);
  return {std::move(o), std::move(plan), std::move(summary)};
}

Outcome carry_out(const grow::ExpandOptions& given, const families::Model& model) {
  io::check_output_directory(given.out, given.model, output::is_shared(given.part));
  const auto [o, plan, summary] = prepare(given, model);
  Json json = summary.to_json();
  const std::string& quantisation = model.stored ? model.stored->quantisation : model.config.quantisation;
  json["quantisation"] = quantisation.empty() ? Json() : Json(quantisation);
  json["dequantised"] = model.stored != nullptr;
  output::tell_left_out(output::files_left_out(model.checkpoint, true), json);
  if (o.dry_run) {
    if (!plan.is_undo) json["plan"] = plan.to_json();
    return {json, plan_text(model, plan, summary)};
  }
  const auto done = grow::expand(model, plan, o.settings(o.out, grow::settings_record(o, plan)));
  output::add_written(done, o.out, json);
  json["optimizer_state"] = done.optimizer_state;
  if (!output::says_result(done, o.part)) {
    return {.json = json, .text = output::part_text(done, *o.part, o.out), .says_result = !o.part->is_auto};
  }
  return {json, wrote_text(o, model, plan, done) + shown(last_line(model, plan, summary, o.out)) + "\n"};
}

/// Opens the model as the options want it, and calls `act` with it.
template <class Act>
auto with_model(const grow::ExpandOptions& o, const Act& act) {
  o.check(o.dry_run);
  const infer::GivenFamily given(o.family_file, o.model);
  families::Model model = families::open_model(o.model, given.family());
  const families::ModelConfig config = model.config;
  return families::naming_quantisation(config, [&] {
    if (o.undo && o.dequantize) refuse_option("dequantize", "--undo takes everything from coppice.json");
    return o.dequantize ? act(grow::dequantised(std::move(model))) : act(model);
  });
}

}  // namespace

Outcome expand(const grow::ExpandOptions& options) {
  return with_model(options, [&](const families::Model& model) { return carry_out(options, model); });
}

std::string plan_of(const grow::ExpandOptions& options) {
  return with_model(options, [&](const families::Model& model) {
    const Prepared prepared = prepare(options, model);
    return plan_text(model, prepared.growth, prepared.summary);
  });
}

}  // namespace coppice::api
