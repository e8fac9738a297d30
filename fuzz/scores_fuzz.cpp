// Scores come from other machines: any JSON gives scores that survive writing and reading and are finite and not
// negative, or Error{kFormat, kNonFinite}; choosing parents by them does not fail in any other way.
#include <cmath>

#include "coppice/plan/selection.h"
#include "coppice/plan/utility.h"
#include "fuzz/fuzzed.h"

namespace plan = coppice::plan;

namespace {

using coppice::fuzz::require;

void choose(const coppice::plan::Scores& scores, std::string_view metric, int64_t layer) {
  for (const auto& selection : plan::layer_selections()) {
    const auto values = plan::layer_scores(scores, metric, selection.name, layer);
    for (const auto& rule : plan::selection_rules()) {
      const auto experts = static_cast<int64_t>(values.size());
      if (experts > 64) continue;
      const auto counts = plan::select_parents(
          rule, {.scores = values, .num_new = experts + 1, .max_duplicates = 3, .key = {}}, experts);
      int64_t sum = 0;
      for (const uint32_t count : counts) sum += count;
      require(sum == experts + 1);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::plan::Scores;
  const auto is_refusal = [](coppice::ErrorCode code) {
    using enum coppice::ErrorCode;
    return code == kFormat || code == kNonFinite || code == kUsage;
  };
  Scores scores;
  try {
    scores = Scores::from_json(coppice::Json::parse({reinterpret_cast<const char*>(data), size}, "input"), "input");
  } catch (const coppice::Error& e) {
    require(is_refusal(e.code));
    return 0;
  }
  require(Scores::from_json(scores.to_json(), "again").to_json() == scores.to_json());
  for (const auto& [name, metric] : scores.metrics) {
    for (const auto& [layer, values] : metric.fc1.sum) {
      for (const double value : values) require(std::isfinite(value) && value >= 0);
      try {
        choose(scores, name, layer);
      } catch (const coppice::Error& e) {
        require(is_refusal(e.code));
      }
    }
  }
  return 0;
}
