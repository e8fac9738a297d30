#include <filesystem>
#include <iostream>
#include <optional>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/output_place.h"
#include "coppice/options/options.h"
#include "coppice/report/html.h"
#include "coppice/report/runs_page.h"

namespace coppice::cli {
namespace {

struct ReportOptions {
  std::vector<std::filesystem::path> runs;
  std::filesystem::path out = "report.html";
  std::optional<std::filesystem::path> plan;
  static constexpr auto fields() {
    using O = ReportOptions;
    return std::tuple{
        operand("RUN", &O::runs,
                "run directories that `coppice train --train.out` wrote, or directories that contain some"),
        field("out", &O::out, "HTML page to write; an earlier page is replaced"),
        field("plan", &O::plan, "output of `coppice plan --json`, to compare with what happened")};
  }
};

constexpr std::string_view kSummary = "write one self-contained HTML page about one or many runs";

std::optional<Json> read_plan(const std::optional<std::filesystem::path>& path) {
  if (!path) return std::nullopt;
  Json plan = Json::read(*path);
  const Json *step = plan.find("step"), *closure = plan.find("closure");
  const Json* basis = step == nullptr ? nullptr : step->find("basis");
  const Json* f0 = closure == nullptr ? nullptr : closure->find("f0");
  if (plan.find("coppice_plan") == nullptr || basis == nullptr || !basis->is_string() || f0 == nullptr ||
      !f0->is_number()) {
    throw Error(ErrorCode::kFormat,
                cat(*path, ": is not a plan of an expansion; wanted the output of `coppice plan MODEL --json`"));
  }
  return plan;
}

int run(std::span<const std::string_view> args) {
  const auto options = parse<ReportOptions>("report", kSummary, args);
  io::check_output_file(options.out, {"page of coppice report", report::Page::is_file}, options.runs);
  const auto runs = report::read_runs(options.runs);
  const std::string html = report::runs_page(runs, read_plan(options.plan)).html();
  io::write_file_atomically(options.out, html);
  std::cout << cat("wrote ", shown(options.out.string()), " (", bytes_text(html.size()), ", ", runs.size(),
                   runs.size() == 1 ? " run)\n" : " runs)\n");
  return 0;
}

}  // namespace

extern const Command kReport;
const Command kReport{"report", kSummary, run};

}  // namespace coppice::cli
