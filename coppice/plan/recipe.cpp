#include "coppice/plan/recipe.h"

#include "coppice/base/find_row.h"

namespace coppice::plan {
namespace {

constexpr Recipe kRecipes[] = {
    {.name = "paper",
     .select = "greedy",
     .metric = "gradient_squared",
     .layer_selection = "both_average",
     .max_duplicates = 3,
     .expert_init = "copy",
     .router_init = "bias_only:delta=0.001",
     .optimizer_state = "reset",
     .router_init_without_bias = "perturb_new_only",
     .summary =
         "up to 3 copies of each of the best experts, exact copies, noise of 0.001 on their biases, zero moments",
     .source = "arXiv:2604.19835"},
};

}  // namespace

std::span<const Recipe> recipes() { return kRecipes; }
const Recipe& recipe(std::string_view name) { return find_row(recipes(), "recipe", name); }

}  // namespace coppice::plan
