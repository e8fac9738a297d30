#include "coppice/api/verify.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/convert/convert.h"
#include "coppice/families/match.h"
#include "coppice/families/quantization.h"
#include "coppice/options/thread_count.h"
#include "coppice/plan/lineage.h"
#include "coppice/verify/conversion.h"
#include "coppice/verify/verify.h"

namespace coppice::api {
namespace {

constexpr size_t kProblemsShown = 20;

std::string sentences_text(std::string_view what, const std::vector<std::string>& sentences) {
  std::string text;
  for (size_t i = 0; i < std::min(kProblemsShown, sentences.size()); ++i) {
    text += cat(what, ": ", shown(sentences[i]), "\n");
  }
  if (sentences.size() > kProblemsShown) text += cat("... and ", sentences.size() - kProblemsShown, " more\n");
  return text;
}

/// For copies that no lineage records: how many were recognised by each criterion.
std::string recognised_text(const verify::VerifyResult& result) {
  constexpr std::array<std::string_view, 5> kBy = {"all bytes", "bit-equal columns", "bit-equal rows",
                                                   "the same columns or rows in another order", "sampled values"};
  std::vector<std::string> parts;
  for (size_t i = 0; i < kBy.size(); ++i) {
    if (result.copies_by_likeness[i] > 0) parts.push_back(cat(result.copies_by_likeness[i], " by ", kBy[i]));
  }
  if (parts.empty()) return {};
  std::string text = cat("copies recognised: ", join(parts));
  if (result.smallest_cosine < 1) text += cat(" (smallest cosine ", number_text(result.smallest_cosine), ")");
  return text + "\n";
}

std::string rows_text(const verify::VerifyResult& result) {
  const bool made = !result.made_by.empty();
  std::string text =
      cat("router rows: ", result.router_rows_equal, " equal their parent's, ", result.router_rows_changed,
          made ? " changed by the method" : " close to it", "; changed biases: ", result.biases_changed);
  if (!made && result.biases_changed > 0) text += cat(", by ", number_text(result.largest_bias_change), " at most");
  return text + "\n";
}

std::string parents_text(const verify::VerifyResult& result) {
  std::string text;
  for (auto first = result.parents.begin(); first != result.parents.end();) {
    auto end = first;  // the end of consecutive layers with the same parents
    while (end != result.parents.end() && end->second == first->second) ++end;
    const auto last = std::prev(end)->first;
    text += (last == first->first ? cat("layer ", last) : cat("layers ", first->first, "-", last)) + ": parents";
    for (const int64_t parent : first->second) text += parent < 0 ? std::string(" ?") : cat(" ", parent);
    text += "\n";
    first = end;
  }
  return text;
}

std::string text_of(const verify::VerifyResult& result) {
  std::string text;
  if (!result.quantisation.empty()) text += cat("quantised: ", shown(result.quantisation), "\n");
  text += cat("experts: ", result.experts_before, " -> ", result.experts_after);
  if (result.split > 1) text += cat(", each 1/", result.split, " of an expert before");
  if (result.top_k_factor > 1) text += cat(", top-K times ", result.top_k_factor);
  text += "\n";
  text += result.made_by.empty() ? std::string("parents: recognised by comparing the experts; no lineage was used\n")
                                 : cat("recomputed and compared byte for byte: ", shown(result.made_by), "\n");
  text += cat("outside experts and routers: ", result.identical, " tensors, bit-equal to those before\n",
              "expert tensors: ", result.experts_original, " byte-equal to their parent's, ", result.experts_changed,
              " derived from it\n", recognised_text(result), rows_text(result));
  if (result.optimizer_tensors > 0)
    text += cat("optimizer state: ", result.optimizer_tensors, " tensors, recomputed and equal\n");
  text += cat("files beside the weights: ", result.files_equal, " unchanged\n", parents_text(result));
  return text + sentences_text("not recognised", result.not_recognised);
}

std::string text_of(const verify::ConversionResult& result) {
  std::string text = cat(result.from, " -> ", result.to);
  if (result.plan) {
    const auto& plan = *result.plan;
    text +=
        cat(": ", plan.parents, plan.parents == 1 ? " dense model, " : " dense models, ", plan.experts, " experts, ",
            plan.top_k, " per token; slices of 1/", plan.granularity, ", gate times ", number_text(plan.scale.gate),
            ", up ", number_text(plan.scale.up), ", down ", number_text(plan.scale.down));
  }
  text += cat("\n", result.identical, " tensors bit-equal to those before, ", result.changed, " computed from them\n",
              "expert tensors: ", result.experts, " recomputed and byte-equal\nrouters: ", result.routers,
              " recomputed and equal, ", result.routers_given, " read from a file\nnew tensors: ", result.new_parts,
              ", with the initial values of a conversion\n");
  for (const std::string& loss : result.losses) text += cat("left out: ", shown(loss), "\n");
  return text + cat("files beside the weights: ", result.files_equal, " unchanged\n");
}

/// The outcome of a check, and of --function if it ran.
template <class Result>
Outcome outcome_of(const Result& result, const std::optional<Outcome>& function) {
  Outcome out{result.to_json(), text_of(result), result.ok};
  out.text += sentences_text("problem", result.problems) + shown(result.verdict()) + "\n";
  if (function) {
    out.json["function"] = function->json;
    out.text += function->text;
  }
  return out;
}

void check_used(const VerifyOptions& o) {
  if (o.function) return;
  constexpr std::string_view kReason = "there is no --function";
  if (o.max_tokens) refuse_option("max-tokens", kReason);
  if (o.sequence_length) refuse_option("sequence-length", kReason);
  if (o.device) refuse_option("device", kReason);
  if (o.max_memory) refuse_option("max-memory", kReason);
}

/// How the function changed, if --function is given and `ok`: a model that failed the check is not run.
std::optional<Outcome> function_of(const VerifyOptions& o, const Engine& engine, const families::Model& before,
                                   const families::Model& after, bool ok,
                                   const std::map<int64_t, std::vector<int64_t>>& parents) {
  if (!o.function || !ok) return std::nullopt;
  return engine.function_change(before, after, parents, o);
}

Outcome compare(const VerifyOptions& o, const Engine& engine, const std::vector<families::Model>& before,
                const families::Model& after, size_t threads) {
  const families::Model& first = before.front();
  const bool was = first.config.is_moe(), is = after.config.is_moe();
  if (!was && is) {
    const auto result = verify::verify_conversion(before, after, threads);
    return outcome_of(result, function_of(o, engine, first, after, result.ok, {}));
  }
  if (before.size() > 1)
    throw Error(ErrorCode::kUsage,
                cat(o.before[1], ": wanted one BEFORE; AFTER is not a conversion of several models"));
  if (was && !is) {
    const auto result = verify::verify_average(first, after, threads);
    return outcome_of(result, function_of(o, engine, first, after, result.ok, {}));
  }
  const auto result = verify::verify(first, after, threads);
  const auto parents = result.split == 1 ? result.parents : decltype(result.parents){};
  return outcome_of(result, function_of(o, engine, first, after, result.ok, parents));
}

}  // namespace

Outcome verify(const VerifyOptions& o, const Engine& engine) {
  check_used(o);
  const size_t threads = thread_count(o.threads);
  const infer::GivenFamily given(o.family_file, o.before.front());
  std::vector<families::Model> before;
  for (const auto& model : o.before) before.push_back(families::open_model(model, given.family()));
  const families::Model& first = before.front();
  auto warned = o.before;
  warned.push_back(o.after);
  for (const auto& model : warned) {
    if (const auto warning = plan::routing_warning(model, plan::read_lineage(model))) log_warning(*warning);
  }
  const families::Model after = families::open_model(o.after, given.family());
  const families::ModelConfig config = first.config.is_quantised() ? first.config : after.config;
  if (before.size() == 1) before[0] = verify::as_expanded(std::move(before[0]), after);
  return families::naming_quantisation(config, [&] { return compare(o, engine, before, after, threads); });
}

}  // namespace coppice::api
