#include <gtest/gtest.h>

#include <set>

#include "coppice/base/text.h"
#include "coppice/families/rule_index_detail.h"

namespace coppice::families::detail {
namespace {

std::string filled(std::string_view rule) {
  std::string name(rule);
  const auto put = [&name](std::string_view mark, std::string_view number) {
    if (const size_t at = name.find(mark); at != std::string::npos) name.replace(at, mark.size(), number);
  };
  put("{L}", "12");
  put("{M}", "2");
  put("{X}", "305");
  put("{N}", "1");
  while (name.find("**") != std::string::npos) name.replace(name.find("**"), 2, "deep.0.er");
  while (name.find('*') != std::string::npos) name.replace(name.find('*'), 1, "any");
  return name;
}

const Family& family(std::string_view model_type) { return family_of(model_type); }

TEST(Matches, KeepsOneStarWithinDots) {
  EXPECT_TRUE(matches("a.*.c", "a.bb.c"));
  EXPECT_FALSE(matches("a.*.c", "a.b.b.c"));
  EXPECT_TRUE(matches("a.**.c", "a.b.b.c"));
  EXPECT_TRUE(matches("*norm*.**", "input_layernorm.weight"));
  EXPECT_FALSE(matches("*norm*.*", "mlp.norm.weight"));
  EXPECT_FALSE(matches("a.b", "a.bc"));
  EXPECT_TRUE(matches("a*b*", "acbb"));
  EXPECT_TRUE(matches("**b.*c", "a.b.b.xc"));
  EXPECT_FALSE(matches("**b.*c", "a.b.b.x.c"));
  EXPECT_TRUE(matches("**", ""));
}

// By trying every length of every wildcard this takes longer than anyone waits.
TEST(Matches, TakesNoLongerForManyWildcards) {
  std::string pattern, text;
  for (int i = 0; i < 60; ++i) {
    pattern += i % 2 == 0 ? "**a" : "*a";
    text += "aa";
  }
  EXPECT_TRUE(matches(pattern, text));
  EXPECT_FALSE(matches(pattern + "b", text));
  EXPECT_FALSE(matches(pattern, text + ".b"));
}

// nn.Sequential: the number behind the expert's is a module, and rules for it name that number.
TEST(RuleIndex, ARuleMayNameANumber) {
  Family family{};
  const TensorRule rules[] = {{"layers.{L}.experts.{X}.{N}.weight", Role::kExpertOther},
                              {"layers.{L}.experts.{X}.0.weight", Role::kExpertUp},
                              {"layers.{L}.experts.{X}.2.weight", Role::kExpertDown},
                              {"layers.{L}.moe_expert3.weight", Role::kOther},
                              {"layers.{L}.expert{X}.w", Role::kExpertUp},
                              {"mtp.0.**", Role::kNorm},
                              {"mtp.**", Role::kOther}};
  family.tensors = rules;
  const RuleIndex index(family);
  const auto rule_of = [&](std::string_view name) {
    const auto found = index.find(name, 4);
    return found ? found->rule - rules : -1;
  };
  EXPECT_EQ(rule_of("layers.1.experts.2.0.weight"), 1);
  EXPECT_EQ(rule_of("layers.0.experts.0.2.weight"), 2);
  EXPECT_EQ(rule_of("layers.2.experts.2.1.weight"), 0);
  EXPECT_EQ(rule_of("layers.2.moe_expert3.weight"), 3);
  EXPECT_EQ(rule_of("layers.2.moe_expert4.weight"), -1);
  EXPECT_EQ(rule_of("mtp.0.gate"), 5);
  EXPECT_EQ(rule_of("mtp.1.gate"), 6);
  const auto found = index.find("layers.1.expert12.w", 4);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->expert, 12);
  EXPECT_EQ(found->expert_at, std::string_view("layers.1.expert").size());
}

TEST(RuleIndex, ASecondListOfLayersCountsFromALayerOfItsOwn) {
  Family family{};
  const TensorRule rules[] = {{.name = "dec.{L}.gate", .role = Role::kRouter, .first_layer = 12},
                              {.name = "mtp.gate", .role = Role::kRouter, .first_layer = 20}};
  family.tensors = rules;
  const RuleIndex index(family);
  EXPECT_EQ(index.find("dec.3.gate", 12)->layer, 15);
  EXPECT_EQ(index.find("mtp.gate", 12)->layer, 20);
}

TEST(RuleIndex, FindsEveryRowOfEveryFamilyByItsName) {
  for (const Family* f : all_families()) {
    const RuleIndex index(*f);
    for (const TensorRule& rule : f->tensors) {
      const auto found = index.find(filled(rule.name), 40);
      ASSERT_TRUE(found) << f->model_type << " " << rule.name;
      EXPECT_EQ(found->rule, &rule) << f->model_type << " " << rule.name << " is taken for " << found->rule->name;
      EXPECT_EQ(found->layer, rule.name.find("{L}") != std::string_view::npos   ? 12
                              : rule.name.find("{M}") != std::string_view::npos ? 42
                                                                                : -1);
      EXPECT_EQ(found->expert, rule.per_expert() ? 305 : -1);
      if (!rule.per_expert()) continue;
      EXPECT_EQ(filled(rule.name).substr(found->expert_at, 3), "305");
    }
  }
}

// A pattern that took an expert's tensor would carry it over as it is, and the expanded model would lack experts.
TEST(RuleIndex, HasNoPatternThatSwallowsWhatLiesBesideExperts) {
  for (const Family* f : all_families()) {
    if (!f->surgery_only) continue;
    const RuleIndex index(*f);
    for (const TensorRule& rule : f->tensors) {
      if (!is_expert(rule.role) && !has_rows(rule.role)) continue;
      std::string name = filled(rule.name);
      const size_t dot = name.rfind('.');
      for (const std::string_view odd : {".unheard_of", ".adapter"}) {
        const auto found = index.find(name.substr(0, dot) + std::string(odd) + ".weight", 40);
        EXPECT_FALSE(found && is_expert(rule.role))
            << f->model_type << ": " << name << odd << " is taken for " << (found ? found->rule->name : "");
      }
    }
  }
}

TEST(RuleIndex, TakesNumbersOnlyAsTransformersWritesThem) {
  const RuleIndex index(family("qwen3_moe"));
  EXPECT_TRUE(index.find("model.layers.0.mlp.gate.weight", 4));
  for (const char* name : {"model.layers.00.mlp.gate.weight", "model.layers.-1.mlp.gate.weight",
                           "model.layers..mlp.gate.weight", "model.layers.1e3.mlp.gate.weight",
                           "model.layers.99999999999.mlp.gate.weight", "model.layers.#.mlp.gate.weight", ""}) {
    const auto found = index.find(name, 4);
    EXPECT_FALSE(found) << name;
  }
}

TEST(RuleIndex, KnowsWhatGoesWithAMatrix) {
  const RuleIndex fp8(family("deepseek_v3")), mxfp4(family("gpt_oss"));
  const auto scale = fp8.find("model.layers.3.mlp.experts.7.up_proj.weight_scale_inv", 61);
  ASSERT_TRUE(scale);
  EXPECT_TRUE(scale->is_companion);
  EXPECT_EQ(scale->rule->role, Role::kExpertUp);
  EXPECT_EQ(scale->expert, 7);
  for (const char* name : {"gate_up_proj_blocks", "gate_up_proj_scales", "down_proj_blocks", "down_proj_scales"}) {
    const auto found = mxfp4.find(cat("model.layers.3.mlp.experts.", name), 24);
    ASSERT_TRUE(found) << name;
    EXPECT_TRUE(found->is_companion) << name;
  }
  EXPECT_FALSE(fp8.find("model.layers.3.mlp.experts.7.side_proj.weight_scale_inv", 61));
}

}  // namespace
}  // namespace coppice::families::detail
