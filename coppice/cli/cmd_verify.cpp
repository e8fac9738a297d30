#include <algorithm>
#include <iostream>
#include <iterator>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/options.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/given_family.h"
#include "coppice/cli/thread_count.h"
#include "coppice/families/match.h"
#include "coppice/upcycle/lineage.h"
#include "coppice/upcycle/verify.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary =
    "account for every tensor of a grown model: what is unchanged, what came from whom";
constexpr size_t kProblemsShown = 20;

struct VerifyOptions {
  std::filesystem::path before, after;
  std::optional<uint64_t> threads;
  std::optional<std::filesystem::path> family_file;
  bool json = false;

  static constexpr auto fields() {
    using O = VerifyOptions;
    return std::tuple{operand("BEFORE", &O::before, "model directory that was grown"),
                      operand("AFTER", &O::after, "model directory that came out"),
                      field("threads", &O::threads, "threads (default: all cores)"),
                      field("family-file", &O::family_file, kFamilyFileHelp),
                      field("json", &O::json, "print one JSON object")};
  }
};

void print_account(const upcycle::VerifyResult& result) {
  std::cout << cat("experts: ", result.experts_before, " -> ", result.experts_after);
  if (result.split > 1) std::cout << cat(", each 1/", result.split, " of one before");
  if (result.top_k_factor > 1) std::cout << cat(", ", result.top_k_factor, " times as many a token");
  std::cout << "\n"
            << cat("outside experts and routers: ", result.identical, " tensors, bit for bit as before\n")
            << cat("expert tensors: ", result.experts_original, " equal their parent's byte for byte, ",
                   result.experts_changed, " derive from it");
  if (result.experts_changed > 0 && result.split == 1)
    std::cout << cat(" (smallest cosine ", number_text(result.smallest_cosine), ")");
  std::cout << cat("\nrouter rows: ", result.router_rows_equal, " equal their parent's, ", result.router_rows_changed,
                   " near it; biases changed: ", result.biases_changed, "\n");
  for (auto first = result.parents.begin(); first != result.parents.end();) {
    auto end = first;  // after the run of layers with the same parents
    while (end != result.parents.end() && end->second == first->second) ++end;
    const auto last = std::prev(end)->first;
    std::cout << (last == first->first ? cat("layer ", last) : cat("layers ", first->first, "-", last)) << ": parents";
    for (const int64_t parent : first->second) std::cout << (parent < 0 ? std::string(" ?") : cat(" ", parent));
    std::cout << "\n";
    first = end;
  }
  for (size_t i = 0; i < std::min(kProblemsShown, result.problems.size()); ++i) {
    std::cout << cat("problem: ", result.problems[i], "\n");
  }
  if (result.problems.size() > kProblemsShown)
    std::cout << cat("... and ", result.problems.size() - kProblemsShown, " more\n");
  std::cout << (result.ok ? cat("ok: every tensor is accounted for\n")
                          : cat("failed: ", result.problems.size(), " problems\n"));
}

int run(std::span<const std::string_view> args) {
  const auto o = parse<VerifyOptions>("verify", kSummary, args);
  const GivenFamily given(o.family_file);
  const families::Model before = families::open_model(o.before, given.family());
  const families::Model after = families::open_model(o.after, given.family());
  for (const auto& model : {o.before, o.after}) {
    if (const auto warning = upcycle::routing_warning(model, upcycle::read_lineage(model))) log_warning(*warning);
  }
  const auto result = upcycle::verify(before, after, thread_count(o.threads));
  if (o.json) {
    std::cout << result.to_json().dump(2) << "\n";
  } else {
    print_account(result);
  }
  return result.ok ? 0 : exit_status(ErrorCode::kCheckFailed);
}

}  // namespace

extern const Command kVerify;
const Command kVerify{"verify", kSummary, run};

}  // namespace coppice::cli
