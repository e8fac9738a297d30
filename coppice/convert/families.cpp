#include "coppice/convert/families.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/find_row.h"
#include "coppice/base/text.h"

namespace coppice::convert {
namespace {

using families::Family;

constexpr DenseFamily kDenseFamilies[] = {
    {.model_type = "llama", .to = "mixtral", .bos = 1, .eos = 2, .pad = {}},
    {.model_type = "mistral", .to = "mixtral", .bos = 1, .eos = 2, .pad = {}},
    {.model_type = "qwen2", .to = "qwen2_moe", .bos = {}, .eos = {}, .pad = {}},
    {.model_type = "qwen3", .to = "qwen3_moe", .bos = {}, .eos = {}, .pad = {}},
    {.model_type = "gemma", .to = "mixtral", .bos = 2, .eos = 1, .pad = 0},
};

constexpr MoeFamily kMoeFamilies[] = {
    {.model_type = "mixtral", .to = "mistral", .windows = WindowKeys::kPlain},
    {.model_type = "granitemoe", .to = "llama"},
    {.model_type = "qwen2_moe", .to = "qwen2", .windows = WindowKeys::kByLayer},
    {.model_type = "qwen3_moe", .to = "qwen3", .windows = WindowKeys::kSwitched},
    {.model_type = "glm4_moe", .to = "qwen3"},
};

template <class Row>
std::string names_of(std::span<const Row> rows) {
  std::vector<std::string> names;
  for (const Row& row : rows) names.emplace_back(row.model_type);
  return join(names);
}

}  // namespace

std::span<const DenseFamily> dense_families() { return kDenseFamilies; }
std::span<const MoeFamily> moe_families() { return kMoeFamilies; }

bool has_centred_norms(const Family& family) {
  return std::ranges::any_of(family.tensors, &families::TensorRule::centred);
}

const DenseFamily& dense_family(std::string_view model_type) {
  for (const DenseFamily& row : kDenseFamilies) {
    if (row.model_type == model_type) return row;
  }
  const Family* known = families::find_family(model_type);
  if (known != nullptr && known->has_moe()) {
    throw Error(ErrorCode::kUnsupported,
                cat("convert: ", model_type,
                    " has experts already (add more with `coppice expand`, or average them with --dense-average)"));
  }
  throw Error(ErrorCode::kUnsupported, cat("convert: dense models of the family ", model_type,
                                           " cannot be converted; known: ", names_of(dense_families())));
}

const MoeFamily& moe_family(std::string_view model_type) {
  std::vector<std::string> names;
  for (const MoeFamily& row : kMoeFamilies) {
    if (row.model_type == model_type) return row;
    names.emplace_back(row.model_type);
  }
  throw Error(ErrorCode::kUsage, cat("to: '", model_type, "' is not a family that dense models can be converted to",
                                     suggestion(model_type, names)));
}

const MoeFamily& family_to_average(std::string_view model_type, std::string_view to) {
  const auto moe = std::ranges::find(kMoeFamilies, model_type, &MoeFamily::model_type);
  if (moe == std::end(kMoeFamilies)) {
    throw Error(ErrorCode::kUnsupported, cat("dense-average: models of the family ", model_type,
                                             " cannot be averaged; known: ", names_of(moe_families())));
  }
  std::vector<std::string> names;
  for (const DenseFamily& row : kDenseFamilies) {
    if (!has_centred_norms(families::family_of(row.model_type))) names.emplace_back(row.model_type);
  }
  if (!to.empty() && std::ranges::find(names, to) == names.end())
    throw Error(ErrorCode::kUsage,
                cat("to: '", to, "' is not a dense family that experts can be averaged to", suggestion(to, names)));
  return *moe;
}

}  // namespace coppice::convert
