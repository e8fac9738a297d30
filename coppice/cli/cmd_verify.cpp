#include <algorithm>
#include <array>
#include <iostream>
#include <iterator>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/engine.h"
#include "coppice/convert/convert.h"
#include "coppice/families/match.h"
#include "coppice/families/quantization.h"
#include "coppice/infer/given_family.h"
#include "coppice/options/byte_count.h"
#include "coppice/options/options.h"
#include "coppice/options/thread_count.h"
#include "coppice/plan/lineage.h"
#include "coppice/verify/conversion.h"
#include "coppice/verify/verify.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary =
    "check every tensor of an expanded or converted model against the model before it";
constexpr size_t kProblemsShown = 20;

struct VerifyOptions {
  std::vector<std::filesystem::path> before;
  std::filesystem::path after;
  std::optional<std::filesystem::path> function;
  std::optional<uint64_t> max_tokens;
  std::optional<int64_t> sequence_length;
  std::optional<std::string> device;
  std::optional<ByteCount> max_memory;
  std::optional<uint64_t> threads;
  std::optional<std::filesystem::path> family_file;
  bool json = false;

  static constexpr auto fields() {
    using O = VerifyOptions;
    return std::tuple{
        operand("BEFORE", &O::before,
                "model directory that was expanded or converted; several if one conversion used several"),
        operand("AFTER", &O::after, "model directory that was written"),
        field("function", &O::function,
              "run both models on this token file (prefix of a .bin/.idx pair) and compare losses and logits"),
        field("max-tokens", &O::max_tokens,
              "with --function: number of tokens, from the start of the file (default: 16384; 0: all)"),
        field("sequence-length", &O::sequence_length, "with --function: tokens per window (default: 256)"),
        field("device", &O::device,
              "with --function: device to compute on: auto (a GPU if there is one; default), cpu, cuda or cuda:N"),
        field("max-memory", &O::max_memory,
              "with --function: most memory for both models, such as 8GiB (default: half of the device's)"),
        field("threads", &O::threads, "CPU threads (default: all cores)"),
        field("family-file", &O::family_file, infer::kFamilyFileHelp),
        field("json", &O::json, "print one JSON object")};
  }
};

void print_sentences(std::string_view what, const std::vector<std::string>& sentences) {
  for (size_t i = 0; i < std::min(kProblemsShown, sentences.size()); ++i) {
    std::cout << cat(what, ": ", shown(sentences[i]), "\n");
  }
  if (sentences.size() > kProblemsShown) std::cout << cat("... and ", sentences.size() - kProblemsShown, " more\n");
}

void print_problems(const std::vector<std::string>& problems, const std::string& verdict) {
  print_sentences("problem", problems);
  std::cout << shown(verdict) << "\n";
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

void print_result(const verify::VerifyResult& result) {
  if (!result.quantisation.empty()) std::cout << cat("quantised: ", shown(result.quantisation), "\n");
  std::cout << cat("experts: ", result.experts_before, " -> ", result.experts_after);
  if (result.split > 1) std::cout << cat(", each 1/", result.split, " of an expert before");
  if (result.top_k_factor > 1) std::cout << cat(", top-K times ", result.top_k_factor);
  std::cout << "\n"
            << (result.made_by.empty()
                    ? std::string("parents: recognised by comparing the experts; no lineage was used\n")
                    : cat("recomputed and compared byte for byte: ", shown(result.made_by), "\n"))
            << cat("outside experts and routers: ", result.identical, " tensors, bit-equal to those before\n")
            << cat("expert tensors: ", result.experts_original, " byte-equal to their parent's, ",
                   result.experts_changed, " derived from it\n")
            << recognised_text(result) << rows_text(result);
  if (result.optimizer_tensors > 0)
    std::cout << cat("optimizer state: ", result.optimizer_tensors, " tensors, recomputed and equal\n");
  std::cout << cat("files beside the weights: ", result.files_equal, " unchanged\n");
  for (auto first = result.parents.begin(); first != result.parents.end();) {
    auto end = first;  // the end of consecutive layers with the same parents
    while (end != result.parents.end() && end->second == first->second) ++end;
    const auto last = std::prev(end)->first;
    std::cout << (last == first->first ? cat("layer ", last) : cat("layers ", first->first, "-", last)) << ": parents";
    for (const int64_t parent : first->second) std::cout << (parent < 0 ? std::string(" ?") : cat(" ", parent));
    std::cout << "\n";
    first = end;
  }
  print_sentences("not recognised", result.not_recognised);
  print_problems(result.problems, result.verdict());
}

void print_conversion(const verify::ConversionResult& result) {
  std::cout << cat(result.from, " -> ", result.to);
  if (result.plan) {
    const auto& plan = *result.plan;
    std::cout << cat(": ", plan.parents, plan.parents == 1 ? " dense model, " : " dense models, ", plan.experts,
                     " experts, ", plan.top_k, " per token; slices of 1/", plan.granularity, ", gate times ",
                     number_text(plan.scale.gate), ", up ", number_text(plan.scale.up), ", down ",
                     number_text(plan.scale.down));
  }
  std::cout << cat("\n", result.identical, " tensors bit-equal to those before, ", result.changed,
                   " computed from them\n", "expert tensors: ", result.experts,
                   " recomputed and byte-equal\nrouters: ", result.routers, " recomputed and equal, ",
                   result.routers_given, " read from a file\nnew tensors: ", result.new_parts,
                   ", with the initial values of a conversion\n");
  for (const std::string& loss : result.losses) std::cout << cat("left out: ", shown(loss), "\n");
  std::cout << cat("files beside the weights: ", result.files_equal, " unchanged\n");
  print_problems(result.problems, result.verdict());
}

int finish(const auto& result, const std::optional<Printed>& function, bool json, const auto& print) {
  if (json) {
    Json out = result.to_json();
    if (function) out["function"] = function->json;
    std::cout << out.dump(2) << "\n";
  } else {
    print(result);
    if (function) std::cout << function->text;
  }
  return result.ok ? 0 : exit_status(ErrorCode::kCheckFailed);
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
std::optional<Printed> function_of(const VerifyOptions& o, const families::Model& before, const families::Model& after,
                                   bool ok, const std::map<int64_t, std::vector<int64_t>>& parents) {
  if (!o.function || !ok) return std::nullopt;
  eval::FunctionSettings settings{.tokens = *o.function};
  settings.max_tokens = o.max_tokens.value_or(settings.max_tokens);
  settings.sequence_length = o.sequence_length;
  settings.device = o.device.value_or(settings.device);
  if (o.max_memory) settings.max_memory_bytes = o.max_memory->bytes;
  return cli::function_change(before, after, parents, settings);
}

int compare(const VerifyOptions& o, const std::vector<families::Model>& before, const families::Model& after,
            size_t threads) {
  const families::Model& first = before.front();
  const bool was = first.config.is_moe(), is = after.config.is_moe();
  if (!was && is) {
    const auto result = verify::verify_conversion(before, after, threads);
    return finish(result, function_of(o, first, after, result.ok, {}), o.json, print_conversion);
  }
  if (before.size() > 1)
    throw Error(ErrorCode::kUsage,
                cat(o.before[1], ": wanted one BEFORE; AFTER is not a conversion of several models"));
  if (was && !is) {
    const auto result = verify::verify_average(first, after, threads);
    return finish(result, function_of(o, first, after, result.ok, {}), o.json, print_conversion);
  }
  const auto result = verify::verify(first, after, threads);
  const auto parents = result.split == 1 ? result.parents : decltype(result.parents){};
  return finish(result, function_of(o, first, after, result.ok, parents), o.json, print_result);
}

int run(std::span<const std::string_view> args) {
  const auto o = parse<VerifyOptions>("verify", kSummary, args);
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
  return families::naming_quantisation(config, [&] { return compare(o, before, after, threads); });
}

}  // namespace

extern const Command kVerify;
const Command kVerify{"verify", kSummary, run};

}  // namespace coppice::cli
