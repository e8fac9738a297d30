#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "coppice/report/arms.h"
#include "coppice/report/attachments.h"
#include "coppice/report/curve.h"
#include "coppice/report/html.h"
#include "coppice/report/run_record.h"

namespace coppice::report::detail {

/// All data that the sections use.
struct Reported {
  const std::vector<RunRecord>& runs;
  std::vector<RunSummary> summaries;
  std::vector<RunAxes> axes;
  Attachments files;
  std::vector<Comparison> comparisons;
  std::vector<ArmGroup> arms;
  std::optional<Json> plan;

  /// Runs that differ only in the seed (the same last part of the name) and share a colour.
  struct Kin {
    std::string name;
    std::vector<size_t> runs;
    int colour = 0;  ///< the same for the same part in a comparison, on every page
  };
  std::vector<Kin> kin;
  int colour_of(const std::string& run) const;
  /// All runs, expanded ones first.
  std::vector<size_t> grown_first() const;
};

/// The points of a run by step; may be empty.
using PointsOf = std::function<Points(const RunRecord&)>;
PointsOf of_tag(std::string tag);
/// Mean over all validation files at each step.
Points mean_validation(const RunRecord& run);
std::vector<std::string> validation_tags(const std::vector<RunRecord>& runs);
/// "validation/french-validation" -> "french"; the end stays unless all of `tags` have it.
std::string domain_of(const std::string& tag, const std::vector<std::string>& tags);

/// A chart of one quantity against tokens, steps, FLOPs and time, if the runs have these values; runs that differ only
/// in the seed are drawn as mean and range. `y_range` from the charted values, without the first steps of runs from
/// scratch, if `is_loss`.
std::vector<Page::View> against_all(const Reported& all, const std::string& title, const std::string& unit,
                                    const PointsOf& points, bool is_loss);
/// The same, only against tokens.
LineChart against_tokens(const Reported& all, const std::string& title, const std::string& unit,
                         const PointsOf& points);

void add_overview(Page& page, const Reported& all);
void add_losses(Page& page, const Reported& all);
void add_closure(Page& page, const Reported& all);
void add_plan(Page& page, const Reported& all);
void add_experts(Page& page, const Reported& all);
void add_lineage(Page& page, const Reported& all);
void add_choice(Page& page, const Reported& all);
void add_training(Page& page, const Reported& all);
void add_configuration(Page& page, const Reported& all);

inline constexpr std::string_view kLayerPrefix = "layer/";
/// layer/3/maxvio -> {3, "maxvio"}; nothing for other tags.
std::optional<std::pair<int64_t, std::string>> layer_tag(std::string_view tag);

/// Each value as a multiple of an even share of their sum; NaN where that is 0.
std::vector<double> times_even(const std::vector<double>& values);
std::string growth_text(int64_t before, int64_t after);  ///< "8 -> 16"
std::string growth_text(const RunSummary& run);

}  // namespace coppice::report::detail
