// A family that a user describes, and a config.json read by it: TOML, a line of %%, JSON. Any text gives a configuration
// of which a plan can be made, or an error about the input.
#include "coppice/base/toml.h"
#include "coppice/families/family_file.h"
#include "coppice/families/match.h"
#include "coppice/families/rule_index_detail.h"
#include "coppice/plan/plan.h"
#include "fuzz/fuzzed.h"

namespace plan = coppice::plan;

namespace {

using coppice::Error;
using coppice::ErrorCode;
using coppice::fuzz::require;
using coppice::fuzz::require_refusal;

constexpr std::string_view kBetween = "\n%%\n";

void use(const coppice::families::Family& family, std::string_view config_text) {
  const coppice::families::detail::RuleIndex index(family);
  for (const char* name :
       {"model.layers.0.mlp.experts.1.up_proj.weight", "model.layers.0.mlp.gate.weight", "lm_head"}) {
    (void)index.find(name, 0);
  }
  try {
    auto config = coppice::families::read_config(coppice::Json::parse(config_text, "config"), "config", &family);
    config.moe_layer.assign(static_cast<size_t>(config.num_layers), true);  // as weights would say
    const auto plan = plan::make_plan(config, {}, nullptr);
    require(coppice::families::read_config(plan::grown_config(config, plan), "grown", &family).num_experts ==
            plan.experts_after);
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kFormat, ErrorCode::kUsage, ErrorCode::kUnsupported});
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::families::FamilyFile;
  const std::string_view text = coppice::fuzz::text_of(data, size);
  const size_t end = text.find(kBetween);
  try {
    const auto file = FamilyFile::from_json(coppice::parse_toml(text.substr(0, end), "input"), "input");
    require(!file.family().model_type.empty());
    if (end != text.npos) use(file.family(), text.substr(end + kBetween.size()));
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kFormat});
  }
  return 0;
}
