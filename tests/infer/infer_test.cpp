#include "coppice/base/toml.h"
#include "tests/infer/toy.h"
#include "tests/testing/any_family.h"

namespace coppice::infer {
namespace {

TEST_F(Infer, FindsNumberedExpertsAndTheirRouter) {
  const Inferred found = infer_toy(Toy());
  EXPECT_EQ(found.count.experts, 3);
  EXPECT_EQ(found.carried, 5u);
  const Json family = found.to_json();
  EXPECT_EQ(family.at("model_type").as_string(), "toy");
  EXPECT_EQ(family.at("top_k_key").as_string(), "num_experts_per_tok");
  std::vector<std::string> names;
  for (const InferredTensor& t : found.tensors) names.push_back(cat(t.name, " ", t.role));
  EXPECT_THAT(names, ::testing::ElementsAre("model.layers.{L}.mlp.gate.weight router",
                                            "model.layers.{L}.mlp.experts.{X}.down.weight expert_other",
                                            "model.layers.{L}.mlp.experts.{X}.up.weight expert_other"));
}

TEST_F(Infer, WritesAFamilyFileThatSaysTheSame) {
  Toy toy;
  toy.config["n_group"] = 3;
  toy.config["topk_group"] = 1;
  toy.add("model.layers.0.mlp.gate.e_score_correction_bias", {3});
  toy.add("model.layers.1.mlp.gate.e_score_correction_bias", {3});
  const Inferred found = infer_toy(toy);
  const Json written = parse_toml(found.to_toml(), "inferred"), family = found.to_json();
  EXPECT_EQ(written.members().size(), family.members().size());
  for (const auto& [key, value] : family.members()) EXPECT_EQ(written.at(key), value) << key;
  EXPECT_EQ(found.to_json().at("num_groups_key").as_string(), "n_group");
  EXPECT_THAT(found.to_text(), ::testing::HasSubstr("rule 4: model.layers.{L}.mlp.gate.e_score_correction_bias [3]"));
}

TEST_F(Infer, RuleOneWantsOneNumberOfExperts) {
  Toy toy;
  toy.config["num_local_experts"] = 4;
  refused(toy, {"disagree", "'num_experts' is 3", "'num_local_experts' is 4", "rule 1"});
  toy = Toy();
  toy.config["num_experts"] = Json::array({Json(3), Json(3)});
  refused(toy, {"'num_experts' is [3, 3]", "rule 1"});
  toy = Toy();
  toy.config["layer_configs"] = Json::object({{"0", Json::object({{"num_experts", 3}})}});
  refused(toy, {"by layer", "rule 1"});
  toy = Toy();
  toy.config["moe_slots"] = 3;
  refused(toy, {"'moe_slots' is 3 too", "rule 1"});
  toy = Toy();
  toy.config["zero_expert_num"] = 2;
  refused(toy, {"'zero_expert_num' is 2", "no experts", "rule 1"});
  toy = Toy();
  toy.config["expert_ids"] = Json::array({Json(0), Json(1), Json(2)});
  refused(toy, {"'expert_ids' is [0, 1, 2]", "rule 1"});
  toy = Toy();
  toy.config["vision_config"] = Json::object({{"model_type", "eye"}, {"hidden_size", 8}, {"num_experts", 3}});
  refused(toy, {"two parts of config.json count 3", "rule 1"});
  toy = Toy();
  toy.config["num_experts"] = Json();
  refused(toy, {"no key of config.json counts", "rule 1"});
  toy = Toy();
  toy.config["num_experts_per_tok"] = Json();
  EXPECT_THROW((void)infer_toy(toy).to_json(), Error) << "top-K cannot be read";
}

TEST_F(Infer, RuleTwoWantsAllExpertsAlike) {
  Toy toy;
  toy.remove("model.layers.1.mlp.experts.1.up.weight");
  refused(toy, {"model.layers.1.mlp.experts", "expert 1 has no 'up.weight'", "rule 2"});
  toy = Toy();
  toy.replace("model.layers.1.mlp.experts.2.up.weight", {5, 6});
  refused(toy, {"experts.2.up.weight", "[5, 6]", "differs", "rule 2"});
  toy = Toy(4);
  toy.config["num_experts"] = 3;
  refused(toy, {"has 4 experts", "'num_experts' is 3", "rule 2"});
  toy = Toy();
  std::erase_if(toy.tensors, [](const HandMadeTensor& t) { return t.info.name.find("experts.") != std::string::npos; });
  refused(toy, {"no tensors look like 3 experts", "rule 2"});
  toy.add("model.layers.0.mlp.experts.w_in", {3, 3, 6});
  toy.add("model.layers.0.mlp.experts.w_out", {3, 3, 7});
  refused(toy, {"dimension 0 and in dimension 1", "rule 2"});
}

TEST_F(Infer, RuleThreeWantsOneRouter) {
  Toy toy;
  toy.replace("model.layers.0.mlp.gate.weight", {6, 3});
  refused(toy, {"a column for each expert", "model.layers.0.mlp.gate.weight", "[6, 3]", "rule 3"});
  toy = Toy();
  toy.replace("model.layers.0.mlp.gate.weight", {4, 6});
  refused(toy, {"no router with 3 rows", "[4, 6]", "rule 3"});
  toy = Toy();
  toy.add("model.layers.0.mlp.router.weight", {3, 6});
  refused(toy, {"either could be the router", "rule 3"});
  toy = Toy();
  toy.add("model.layers.0.mlp.router.weight", {5, 6});
  refused(toy, {"more rows than experts", "rule 3"});
  toy = Toy(6);
  refused(toy, {"which side counts the experts", "rule 3"});
  toy = Toy();
  toy.tensors.push_back(testing::raw_tensor("model.layers.0.mlp.gate.table", io::Dtype::kI64, {10, 2}, 5));
  refused(toy, {"whole numbers in a layer with experts", "I64", "rule 3"});
  toy = Toy();
  toy.add("model.layers.1.mlp.gate.e_score_correction_bias", {3});
  refused(toy, {"differ in the tensors", "rule 3"});
}

TEST_F(Infer, RuleFourWantsEveryOtherSizeExplained) {
  Toy toy;
  toy.add("model.layers.0.other.weight", {3, 5});
  refused(toy, {"model.layers.0.other.weight", "[3, 5]", "no size in config.json is 3", "rule 4"});
  toy.config["num_attention_heads"] = 3;  // now 3 is the size of something, and names have to tell
  refused(toy, {"a size in config.json too", "rule 4"});
  toy = Toy();
  toy.config["num_attention_heads"] = 3;
  toy.add("model.layers.0.self_attn.sinks", {3});
  EXPECT_EQ(infer_toy(toy).carried, 6u);
  toy.add("model.layers.0.mlp.gate.strange", {3});
  toy.add("model.layers.1.mlp.gate.strange", {3});
  refused(toy, {"3 values, and 3 is a size of other things too", "rule 4"});
  toy = Toy();
  toy.add("model.layers.0.mlp.gate.e_score_correction_bias", {4});
  refused(toy, {"by its name a value for each expert", "rule 4"});
  toy = Toy();
  toy.add("model.layers.0.mlp.gate.pairs", {3, 3});
  refused(toy, {"rule"});
}

TEST_F(Infer, LeavesSharedExpertsAlone) {
  Toy toy;
  for (const char* layer : {"0", "1"})
    toy.add(cat("model.layers.", layer, ".mlp.shared_experts.0.gate.weight"), {3, 6});
  const Inferred found = infer_toy(toy);
  EXPECT_EQ(found.tensors.size(), 3u);
}

// What a stranger tried: each has something for every expert, or only looks so, and none may be expanded.
TEST_F(Infer, RefusesWhatMayBelongToExpertsUnderOtherNames) {
  using Shape = std::vector<int64_t>;
  const std::pair<const char*, Shape> kStrange[] = {
      {"moe_stats.load", {2, 3}},    // outside the layers
      {"model.layers.0.load", {3}},  // beside the module
      {"model.layers.0.noise.weight", {3, 5}},
      {"mtp.moe.w_in", {3, 4, 6}},  // a module without a number or a router
      {"mtp.moe.experts.w_in", {3, 4, 6}},
      {"model.layers.0.mlp.gate.history", {9, 2}},        // twice as many
      {"model.layers.0.mlp.w1_bias_of_experts", {12}},    // experts times width
      {"model.layers.0.mlp.moe_shared_stats.load", {3}},  // "shared" inside a word
      {"model.layers.0.mlp.norms.K", {6}},                // a list of as many
      {"model.layers.0.mlp.adapterK.weight", {6, 2}},
      {"model.layers.0.mlp.\x7f.weight", {6}},  // cannot be written
      {"model.layers.0.mlp.*m*m*m*m*m.weight", {6}},
      {"model.layers.0.mlp.{X}.weight", {6}}};
  for (const auto& [name, shape] : kStrange) {
    SCOPED_TRACE(name);
    Toy toy;
    const std::string text = name;
    const size_t list = text.find('K');
    for (int i = 0; i < (list == std::string::npos ? 1 : 3); ++i) {
      std::string one = text;
      if (list != std::string::npos) one.replace(list, 1, std::to_string(i));
      toy.add(one, shape);
    }
    refused(toy, {"rule"});
  }
  for (const auto& [key, value] : {std::pair<std::string, Json>{"router_output_dim", Json(3)},
                                   {"router_layer_sizes", Json::array({Json(24), Json(3)})},
                                   {"moe_expert_scales", Json::array({Json(1), Json(2), Json(3)})},
                                   {"moe_n_group", Json(3)},
                                   {"num_local_experts", Json("3")},
                                   {"n_routed_experts", Json(3.0)}}) {
    SCOPED_TRACE(key);
    Toy toy;
    toy.config[key] = value;
    if (key == "num_local_experts" || key == "n_routed_experts") toy.config["num_experts"] = Json();
    refused(toy, {key, "rule 1"});
  }
}

// Right or refused, never wrong: what is inferred gives the same model as the family's own table.
TEST(InferredFamilies, ExpandAsTheTablesDo) {
  int inferred = 0;
  std::vector<std::string> refusals;
  for (const std::string& name : testing::moe_families()) {
    SCOPED_TRACE(name);
    const TempDir dir;
    (void)testing::any_model(dir / "m", name);
    std::optional<families::FamilyFile> file;
    try {
      file = families::FamilyFile::from_json(infer_from(dir / "m").to_json(), "inferred");
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::kUnsupported) << error.what();
      refusals.push_back(name);
      continue;
    }
    ++inferred;
    const plan::GrowthOptions growth{.router_init = methods::MethodChoice{"copy", {}}};
    const auto by_table = families::open_model(dir / "m");
    plan::GrowthOptions same = growth;
    const plan::GrowthPlan plan = plan::make_plan(by_table.config, same, nullptr);
    (void)grow::expand(by_table, plan, {.out = dir / "by-table"});
    const auto by_rules = families::open_model(dir / "m", &file->family());
    same.order = plan.order == plan::Order::kSiblings ? "siblings" : "append";
    (void)grow::expand(by_rules, plan::make_plan(by_rules.config, same, nullptr), {.out = dir / "by-rules"});
    EXPECT_EQ(tensors_of(dir / "by-rules"), tensors_of(dir / "by-table"));
    EXPECT_EQ(Json::read(dir / "by-rules" / "config.json"), Json::read(dir / "by-table" / "config.json"));
  }
  EXPECT_GE(inferred, 40) << ::testing::PrintToString(refusals);
}

}  // namespace
}  // namespace coppice::infer
