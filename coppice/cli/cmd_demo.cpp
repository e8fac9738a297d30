#include <iostream>

#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/demo/demo.h"
#include "coppice/demo/findings.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary =
    "run everything on real text: train, score, expand, verify, continue training, compare, report";

int run(std::span<const std::string_view> args) {
  const auto options = parse<demo::DemoOptions>("demo", kSummary, args);
  if (options.quiet) set_log_sink(stderr_sink(true));
  const auto seeds = demo::run_demo(options);
  const auto report = options.out / "report.html";
  if (options.json) {
    Json out = Json::object({{"report", report.string()}});
    for (const auto& seed : seeds) out["seeds"].push_back(seed.to_json());
    out["result"] = demo::result_sentence(options, seeds);
    for (const auto& sentence : demo::findings(seeds)) out["findings"].push_back(sentence);
    std::cout << out.dump(1) << "\n";
    return 0;
  }
  std::cout << report::text_table(demo::loss_table(seeds)) << "\n";
  for (const auto& sentence : demo::findings(seeds)) std::cout << sentence << "\n";
  std::cout << cat("\nReport: ", shown(report.string()), "\n\n", demo::result_sentence(options, seeds), "\n");
  return 0;
}

}  // namespace

extern const Command kDemo;
const Command kDemo{"demo", kSummary, run};

}  // namespace coppice::cli
