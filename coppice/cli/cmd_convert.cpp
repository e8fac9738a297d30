#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/voice.h"
#include "coppice/convert/convert.h"
#include "coppice/convert/convert_options.h"
#include "coppice/convert/families.h"
#include "coppice/convert/summary.h"
#include "coppice/families/match.h"
#include "coppice/families/quantization.h"
#include "coppice/io/output_place.h"
#include "coppice/plan/lineage.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary = "convert a dense model, or several, to a Mixture of Experts";

int carry_out(convert::Conversion& conversion, const families::Model& first, const convert::ConvertOptions& o,
              const std::optional<convert::ConversionPlan>& plan) {
  const convert::ConversionSummary summary = convert::summary(conversion, first, plan);
  Json json = summary.to_json();
  output::tell_left_out(output::files_left_out(first.checkpoint, false), json);
  if (o.dry_run) {
    std::cout << (o.json ? json.dump(2) + "\n" : summary.to_text());
    return 0;
  }
  const Json record = convert::settings_record(o, plan ? &*plan : nullptr, summary.to);
  const auto done = convert::convert(conversion, o.settings(o.out, record));
  output::add_written(done, o.out, json);
  const bool says_result = output::says_result(done, o.part);
  if (o.json) {
    if (says_result || !o.part->is_auto) std::cout << json.dump(2) << "\n";
  } else if (!says_result) {
    std::cout << output::part_text(done, *o.part, o.out);
  } else {
    std::cout << cat("wrote ", shown(o.out.string()), ": ", output::size_text(done, o.part), "; peak memory ",
                     done.peak_rss_bytes >> 20, " MiB\n")
              << summary.to_text();
  }
  return 0;
}

int average(const convert::ConvertOptions& o, const families::Model& model) {
  if (!model.config.is_moe()) refuse_option("dense-average", cat(o.models.front(), " has no experts"));
  convert::Conversion conversion(model, o.to.value_or(std::string(convert::dense_counterpart(model))), o.lossy);
  return carry_out(conversion, model, o, std::nullopt);
}

int combine(const convert::ConvertOptions& o, const std::vector<families::Model>& parents) {
  std::optional<methods::RouterRows> rows;
  if (o.router_rows) rows = methods::RouterRows::read(*o.router_rows);
  const auto* given = rows ? &*rows : nullptr;
  const auto& first = parents.front();
  const auto plan = convert::make_conversion_plan(first.config, static_cast<int64_t>(parents.size()),
                                                  convert::conversion_options(o, given));
  convert::Conversion conversion(parents, plan, given);
  return carry_out(conversion, first, o, plan);
}

int run(std::span<const std::string_view> args) {
  auto o = parse<convert::ConvertOptions>("convert", kSummary, args);
  speak_as(o.part);
  o.check(o.dry_run);
  convert::check_effects(o);
  for (const auto& model : o.models) {
    io::check_output_directory(o.out, model, output::is_shared(o.part));
    plan::warn_of_unfinished_handover(model);
  }
  if (o.dense_average) {
    const families::Model model = families::open_model(o.models.front());
    return families::naming_quantisation(model.config, [&] { return average(o, model); });
  }
  o = convert::with_recipe(std::move(o));
  std::vector<families::Model> parents;
  for (const auto& model : o.models) parents.push_back(families::open_model(model));
  return families::naming_quantisation(parents.front().config, [&] { return combine(o, parents); });
}

}  // namespace

extern const Command kConvert;
const Command kConvert{"convert", kSummary, run};

}  // namespace coppice::cli
