#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/placements_detail.h"

namespace coppice::families {

extern const Family kMixtral, kOlmoe, kQwen2Moe, kQwen3Moe, kGlm4Moe, kGemma, kMistral, kPhi3, kLlama, kQwen2, kQwen3,
    kAfmoe, kAriaText, kDbrx, kDeepseekV2, kDeepseekV3, kDeepseekV32, kKimiK2, kDots1, kSolarOpen, kGlm4MoeLite,
    kGlmMoeDsa, kGlm4vMoeText, kMimoV2Flash, kAxk1, kAxk2, kErnie45Moe, kExaoneMoe, kGemma4Text, kGptOss, kGraniteMoe,
    kGraniteMoeShared, kGraniteMoeHybrid, kGraniteMoeSwa, kHunyuanV1Moe, kHyV3, kJamba, kJetmoe, kKimiLinear, kLaguna,
    kLfm2Moe, kLlama4Text, kLongcatFlash, kMinimax, kMinimaxM2, kNemotronH, kNllbMoe, kPhimoe, kFlexOlmo, kMellum,
    kCohere2Moe, kQwen3Next, kQwen35MoeText, kQwen3VlMoeText, kSwitchTransformers, kZaya;

namespace {
// One line per file: first families that coppice can train, then those that it only expands.
constexpr const Family* kFamilies[] = {&kMixtral,
                                       &kOlmoe,
                                       &kQwen2Moe,
                                       &kQwen3Moe,
                                       &kGlm4Moe,
                                       &kGlm4MoeLite,
                                       &kDots1,
                                       &kSolarOpen,
                                       &kDeepseekV2,
                                       &kDeepseekV3,
                                       &kGptOss,
                                       &kGraniteMoe,
                                       &kGraniteMoeShared,
                                       &kMinimaxM2,
                                       &kGemma,
                                       &kLlama,
                                       &kMistral,
                                       &kPhi3,
                                       &kQwen2,
                                       &kQwen3,
                                       &kAfmoe,
                                       &kAriaText,
                                       &kDbrx,
                                       &kDeepseekV32,
                                       &kKimiK2,
                                       &kGlmMoeDsa,
                                       &kGlm4vMoeText,
                                       &kMimoV2Flash,
                                       &kAxk1,
                                       &kAxk2,
                                       &kErnie45Moe,
                                       &kExaoneMoe,
                                       &kGemma4Text,
                                       &kGraniteMoeHybrid,
                                       &kGraniteMoeSwa,
                                       &kHunyuanV1Moe,
                                       &kHyV3,
                                       &kJamba,
                                       &kJetmoe,
                                       &kKimiLinear,
                                       &kLaguna,
                                       &kLfm2Moe,
                                       &kLlama4Text,
                                       &kLongcatFlash,
                                       &kMinimax,
                                       &kNemotronH,
                                       &kNllbMoe,
                                       &kPhimoe,
                                       &kFlexOlmo,
                                       &kMellum,
                                       &kCohere2Moe,
                                       &kQwen3Next,
                                       &kQwen35MoeText,
                                       &kQwen3VlMoeText,
                                       &kSwitchTransformers,
                                       &kZaya};

/// Known families that cannot be expanded by copying experts.
struct Refused {
  std::string_view model_type, reason;
};
constexpr Refused kRefused[] = {
    {"doge",
     "product-key experts are pairs of keys from two lists, so their number is a square, and a copy of one key copies "
     "a whole row or column of experts"},
};

}  // namespace

std::span<const Family* const> all_families() { return kFamilies; }

const Family* find_family(std::string_view model_type) {
  const auto found = std::ranges::find(kFamilies, model_type, &Family::model_type);
  return found == std::end(kFamilies) ? nullptr : *found;
}

const Family& family_of(std::string_view model_type) {
  if (const Family* family = find_family(model_type)) return *family;
  for (const Refused& refused : kRefused) {
    if (refused.model_type == model_type)
      throw Error(ErrorCode::kUnsupported, cat("model_type '", model_type, "' cannot be expanded: ", refused.reason));
  }
  std::vector<std::string> known;
  for (const Family* family : kFamilies) known.emplace_back(family->model_type);
  const std::string near = nearest(model_type, known);
  throw Error(ErrorCode::kUnsupported,
              cat("model_type '", model_type, "' is not a family of this build",
                  near.empty() ? "" : cat("; did you mean '", near, "'?"), "; known: ", join(known),
                  " (describe your family in a file and give it with --family-file)"));
}

bool detail::is_refused(std::string_view model_type) {
  return std::ranges::find(kRefused, model_type, &Refused::model_type) != std::end(kRefused);
}

bool Family::has_role(Role role) const {
  return std::any_of(tensors.begin(), tensors.end(), [role](const TensorRule& rule) { return rule.role == role; });
}

}  // namespace coppice::families
