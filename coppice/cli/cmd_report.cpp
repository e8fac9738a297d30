#include <filesystem>
#include <iostream>
#include <vector>

#include "coppice/base/options.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/io/atomic_file.h"
#include "coppice/report/runs_page.h"

namespace coppice::cli {
namespace {

struct ReportOptions {
  std::vector<std::filesystem::path> runs;
  std::filesystem::path out = "report.html";
  static constexpr auto fields() {
    using O = ReportOptions;
    return std::tuple{operand("RUN", &O::runs, "run folders (what `coppice train --train.out` made)"),
                      field("out", &O::out, "the page to write; replaced if it exists")};
  }
};

constexpr std::string_view kSummary = "one self-contained page from one or many runs";

int run(std::span<const std::string_view> args) {
  const auto options = parse<ReportOptions>("report", kSummary, args);
  std::vector<report::RunRecord> runs;
  for (const auto& directory : options.runs) runs.push_back(report::RunRecord::read(directory));
  const std::string html = report::runs_page(runs).html();
  io::write_file_atomically(options.out, html);
  std::cout << cat("wrote ", options.out, " (", bytes_text(html.size()), ", ", runs.size(), " runs)\n");
  return 0;
}

}  // namespace

extern const Command kReport;
const Command kReport{"report", kSummary, run};

}  // namespace coppice::cli
