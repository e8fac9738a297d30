#include <algorithm>
#include <deque>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/toml.h"
#include "coppice/families/family_file.h"
#include "coppice/families/family_texts_detail.h"
#include "coppice/families/placements_detail.h"

namespace coppice::families {

extern const Family kMixtral, kOlmoe, kQwen2Moe, kQwen3Moe, kGlm4Moe, kGlm4MoeLite, kDots1, kSolarOpen, kDeepseekV2,
    kDeepseekV3, kGptOss, kGraniteMoe, kGraniteMoeShared, kMinimaxM2, kGemma, kLlama, kMistral, kPhi3, kQwen2, kQwen3;

namespace {

// One line per table in C++: families that coppice can train. Those that it only expands are TOML files beside them.
constexpr const Family* kTrained[] = {
    &kMixtral,    &kOlmoe,      &kQwen2Moe, &kQwen3Moe,   &kGlm4Moe,          &kGlm4MoeLite, &kDots1, &kSolarOpen,
    &kDeepseekV2, &kDeepseekV3, &kGptOss,   &kGraniteMoe, &kGraniteMoeShared, &kMinimaxM2,   &kGemma, &kLlama,
    &kMistral,    &kPhi3,       &kQwen2,    &kQwen3};

/// Every family: the tables in C++, then the files in the order of their names.
class Families {
 public:
  Families() : all_(std::begin(kTrained), std::end(kTrained)) {
    std::vector<const detail::FamilyText*> waiting;  // for the family that they are like
    for (const detail::FamilyText& text : detail::family_texts()) waiting.push_back(&text);
    while (!waiting.empty()) {
      const size_t before = waiting.size();
      std::erase_if(waiting, [this](const detail::FamilyText* text) { return read(*text); });
      COPPICE_CHECK(waiting.size() < before, waiting.front()->name, " is like a family that is not there");
    }
    std::ranges::sort(all_.begin() + std::ssize(kTrained), all_.end(), {}, &Family::model_type);
  }

  const std::vector<const Family*>& all() const { return all_; }
  const Family* find(std::string_view model_type) const {
    const auto found = std::ranges::find(all_, model_type, &Family::model_type);
    return found == all_.end() ? nullptr : *found;
  }

 private:
  bool read(const detail::FamilyText& text) {
    const Json json = parse_toml(text.text, text.name);
    const Json* like = json.find("like");
    if (like != nullptr && find(like->as_string()) == nullptr) return false;
    files_.push_back(FamilyFile::from_json(json, text.name, [this](std::string_view name) { return find(name); }));
    // The file was compared with the model's code: what it does not name has no effect.
    Family& family = files_.back().family();
    family.from_file = false;
    family.named_keys = {};
    family.says_groups = family.group_score_known = true;
    if (family.renormalise.kind == Switch::Kind::kUnknown && family.gate != GateFunction::kUnknown)
      family.renormalise = {};
    all_.push_back(&family);
    return true;
  }

  std::deque<FamilyFile> files_;
  std::vector<const Family*> all_;
};

const Families& families() {
  static const Families kFamilies;
  return kFamilies;
}

/// Known families that cannot be expanded by copying experts.
struct Refused {
  std::string_view model_type, reason;
};
constexpr std::string_view kTwoSets =
    "each layer has two sets of experts under one count, those for images numbered after those for text, and routers "
    "with a column for each expert, which coppice does not copy yet; saved by transformers with "
    "save_original_format=False, where the sets are apart, it can be expanded with --family-file auto";
constexpr Refused kRefused[] = {
    {"doge",
     "product-key experts are pairs of keys from two lists, so their number is a square, and a copy of one key copies "
     "a whole row or column of experts"},
    {"qwen3_omni_moe",
     "its thinker and its talker have experts, and their configurations lie two levels deep; the thinker saved alone "
     "(qwen3_omni_moe_thinker) can be expanded"},
    {"skywork",
     "its routers have a hidden layer of 8 units for each expert, which would have to grow with the number of experts"},
    {"ernie4_5_vl_moe", kTwoSets},
    {"ernie4_5_vl_moe_text", kTwoSets},
};

}  // namespace

std::span<const Family* const> all_families() { return families().all(); }

const Family* find_family(std::string_view model_type) { return families().find(model_type); }

const Family& family_of(std::string_view model_type) {
  if (const Family* family = find_family(model_type)) return *family;
  for (const Refused& refused : kRefused) {
    if (refused.model_type == model_type)
      throw Error(ErrorCode::kUnsupported, cat("model_type '", model_type, "' cannot be expanded: ", refused.reason));
  }
  std::vector<std::string> known;
  for (const Family* family : all_families()) known.emplace_back(family->model_type);
  const std::string near = nearest(model_type, known);
  throw Error(ErrorCode::kUnsupported,
              cat("model_type '", model_type, "' is not a family of this build",
                  near.empty() ? "" : cat("; did you mean '", near, "'?"),
                  " (`coppice inspect MODEL --infer` looks for its experts, and --family-file auto uses what it finds; "
                  "or describe the family in a file; `coppice list families` has the known ones)"));
}

bool detail::is_refused(std::string_view model_type) {
  return std::ranges::find(kRefused, model_type, &Refused::model_type) != std::end(kRefused);
}

bool Family::has_role(Role role) const {
  return std::any_of(tensors.begin(), tensors.end(), [role](const TensorRule& rule) { return rule.role == role; });
}

}  // namespace coppice::families
