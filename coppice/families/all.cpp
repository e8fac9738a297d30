#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/family.h"

namespace coppice::families {

extern const Family kMixtral, kOlmoe, kQwen2Moe, kQwen3Moe, kGlm4Moe, kLlama, kQwen2, kQwen3;

namespace {
constexpr const Family* kFamilies[] = {&kMixtral, &kOlmoe, &kQwen2Moe, &kQwen3Moe,
                                       &kGlm4Moe, &kLlama, &kQwen2,    &kQwen3};
}  // namespace

std::span<const Family* const> all_families() { return kFamilies; }

const Family& family_of(std::string_view model_type) {
  std::vector<std::string> known;
  for (const Family* family : kFamilies) {
    if (family->model_type == model_type) return *family;
    known.emplace_back(family->model_type);
  }
  const std::string near = nearest(model_type, known);
  throw Error(ErrorCode::kUnsupported,
              cat("model_type '", model_type, "' is no family of this build",
                  near.empty() ? "" : cat("; did you mean '", near, "'?"), "; known: ", join(known)));
}

bool Family::has_role(Role role) const {
  return std::any_of(tensors.begin(), tensors.end(), [role](const TensorRule& rule) { return rule.role == role; });
}

}  // namespace coppice::families
