#include "coppice/convert/recipe.h"

#include "coppice/base/find_row.h"

namespace coppice::convert {
namespace {

constexpr Recipe kRecipes[] = {
    {.name = "paper",
     .routing = "softmax_topk",
     .scale = "cbrt",
     .expert_init = "copy",
     .init_all = false,
     .summary = "virtual groups, softmax before top-K, gate, up and down times the cube root of E G / K",
     .source = "arXiv:2410.07524"},
    {.name = "megatron",
     .routing = {},
     .scale = "cbrt",
     .expert_init = "copy",
     .init_all = false,
     .summary = "the same with the family's own routing order, as Megatron Core does it",
     .source = "arXiv:2410.07524"},
    {.name = "drop_upcycling",
     .routing = {},
     .scale = "none",
     .expert_init = "drop_units:ratio=0.5",
     .init_all = true,
     .summary = "half of the units of every expert reinitialised with the mean and std of the values that they "
                "replace; no scaling",
     .source = "arXiv:2502.19261"},
    {.name = "exact",
     .routing = "topk_softmax",
     .scale = "down",
     .expert_init = "copy",
     .init_all = false,
     .summary = "keeps the dense model's function up to rounding: gates add up to 1, down is scaled",
     .source = {}},
};

}  // namespace

std::span<const Recipe> recipes() { return kRecipes; }
const Recipe& recipe(std::string_view name) { return find_row(recipes(), "recipe", name); }

}  // namespace coppice::convert
