#include "coppice/api/convert.h"

#include <optional>
#include <string>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/convert/convert.h"
#include "coppice/convert/convert_options.h"
#include "coppice/convert/families.h"
#include "coppice/convert/summary.h"
#include "coppice/families/match.h"
#include "coppice/families/quantization.h"
#include "coppice/io/output_place.h"
#include "coppice/plan/lineage.h"

namespace coppice::api {
namespace {

Outcome carry_out(convert::Conversion& conversion, const families::Model& first, const convert::ConvertOptions& o,
                  const std::optional<convert::ConversionPlan>& plan) {
  const convert::ConversionSummary summary = convert::summary(conversion, first, plan);
  Json json = summary.to_json();
  output::tell_left_out(output::files_left_out(first.checkpoint, false), json);
  if (o.dry_run) {
    return {json, summary.to_text()};
  }
  const Json record = convert::settings_record(o, plan ? &*plan : nullptr, summary.to);
  const auto done = convert::convert(conversion, o.settings(o.out, record));
  output::add_written(done, o.out, json);
  if (!output::says_result(done, o.part)) {
    return {.json = json, .text = output::part_text(done, *o.part, o.out), .says_result = !o.part->is_auto};
  }
  return {json, cat("wrote ", shown(o.out.string()), ": ", output::size_text(done, o.part), "; peak memory ",
                    done.peak_rss_bytes >> 20, " MiB\n", summary.to_text())};
}

Outcome average(const convert::ConvertOptions& o, const families::Model& model) {
  if (!model.config.is_moe()) refuse_option("dense-average", cat(o.models.front(), " has no experts"));
  convert::Conversion conversion(model, o.to.value_or(std::string(convert::dense_counterpart(model))), o.lossy);
  return carry_out(conversion, model, o, std::nullopt);
}

Outcome combine(const convert::ConvertOptions& o, const std::vector<families::Model>& parents) {
  std::optional<methods::RouterRows> rows;
  if (o.router_rows) rows = methods::RouterRows::read(*o.router_rows);
  const auto* given = rows ? &*rows : nullptr;
  const auto& first = parents.front();
  const auto plan = convert::make_conversion_plan(first.config, static_cast<int64_t>(parents.size()),
                                                  convert::conversion_options(o, given));
  convert::Conversion conversion(parents, plan, given);
  return carry_out(conversion, first, o, plan);
}

}  // namespace

Outcome convert(const convert::ConvertOptions& options) {
  options.check(options.dry_run);
  convert::check_effects(options);
  for (const auto& model : options.models) {
    io::check_output_directory(options.out, model, output::is_shared(options.part));
    plan::warn_of_unfinished_handover(model);
  }
  if (options.dense_average) {
    const families::Model model = families::open_model(options.models.front());
    return families::naming_quantisation(model.config, [&] { return average(options, model); });
  }
  const auto o = convert::with_recipe(options);
  std::vector<families::Model> parents;
  for (const auto& model : o.models) parents.push_back(families::open_model(model));
  return families::naming_quantisation(parents.front().config, [&] { return combine(o, parents); });
}

}  // namespace coppice::api
