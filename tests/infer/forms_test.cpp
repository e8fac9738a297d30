// Checkpoints of unusual forms: each is taken in its right form, and its wrong neighbours are refused.

#include "tests/infer/toy.h"

namespace coppice::infer {
namespace {

// nn.Sequential: the second number is a module of the expert.
TEST_F(Infer, TellsModulesOfAnExpertFromExperts) {
  const auto sequential = [](const std::vector<int>& modules) {
    Toy toy;
    std::erase_if(toy.tensors,
                  [](const HandMadeTensor& t) { return t.info.name.find("mlp.experts.") != std::string::npos; });
    for (int layer = 0; layer < 2; ++layer) {
      for (int expert = 0; expert < 3; ++expert) {
        for (const int module : modules) {
          const bool is_up = module == modules.front() || modules.size() > 2;
          toy.add(cat("model.layers.", layer, ".mlp.experts.", expert, ".", module, ".weight"),
                  is_up ? std::vector<int64_t>{4, 6} : std::vector<int64_t>{6, 4});
        }
      }
    }
    return toy;
  };
  expands(sequential({0, 2}), {"model.layers.1.mlp.experts.5.0.weight", "model.layers.1.mlp.experts.5.2.weight"});
  refused(sequential({0, 1, 2}), {"again a list of 3", "either could be the experts", "rule 2"});
  Toy toy = sequential({0, 2});
  toy.remove("model.layers.0.mlp.experts.1.2.weight");
  refused(toy, {"expert 1 has no '2.weight'", "rule 2"});
  toy = sequential({0, 2});
  for (const char* expert : {"0", "1", "2"}) toy.remove(cat("model.layers.1.mlp.experts.", expert, ".2.weight"));
  refused(toy, {"differ in the tensors", "rule 3"});
}

// The router as a sequence of layers, of which the last has the rows.
TEST_F(Infer, TellsTheLastLayerOfARouterFromOthers) {
  Toy toy;
  for (const char* layer : {"0", "1"}) {
    toy.remove(cat("model.layers.", layer, ".mlp.gate.weight"));
    toy.add(cat("model.layers.", layer, ".mlp.gate.0.weight"), {5, 6});
    toy.add(cat("model.layers.", layer, ".mlp.gate.2.weight"), {3, 5});
  }
  expands(toy, {"model.layers.1.mlp.gate.0.weight"});
  toy.replace("model.layers.1.mlp.gate.0.weight", {3, 6});
  refused(toy, {"either could be the router", "rule 3"});
}

TEST_F(Infer, ReadsANumberAtTheEndOfTheWord) {
  for (const std::string_view word : {"expert_", "experts_", "expert", "experts", "moe_expert_"}) {
    SCOPED_TRACE(word);
    Toy toy;
    for (HandMadeTensor& t : toy.tensors) {
      std::string name(t.info.name);
      if (const size_t at = name.find("mlp.experts."); at != std::string::npos)
        t.info.name = name.replace(at, 12, cat("mlp.", word));
    }
    expands(toy, {cat("model.layers.1.mlp.", word, "5.down.weight")});
    toy.remove(cat("model.layers.0.mlp.", word, "0.up.weight"));
    refused(toy, {"expert 0 has no 'up.weight'", "rule 2"});
  }
  Toy toy;  // matrices of a stack that are numbered: no experts
  std::erase_if(toy.tensors,
                [](const HandMadeTensor& t) { return t.info.name.find("mlp.experts.") != std::string::npos; });
  for (const char* layer : {"0", "1"}) {
    for (const char* matrix : {"0", "1", "2"}) toy.add(cat("model.layers.", layer, ".moe.experts", matrix), {3, 4, 6});
    toy.remove(cat("model.layers.", layer, ".mlp.gate.weight"));
    toy.add(cat("model.layers.", layer, ".moe.gate.weight"), {3, 6});
  }
  expands(toy, {"model.layers.0.moe.experts2"});
}

TEST_F(Infer, KnowsTheExpertsOfATokenByManyNames) {
  const auto named = [](const std::string& key, Json value) {
    Toy toy;
    Json config = Json::object();
    for (const auto& [name, old] : toy.config.members()) {
      if (name != "num_experts_per_tok") config[name] = old;
    }
    config[key] = std::move(value);
    toy.config = config;
    return toy;
  };
  for (const char* key : {"n_experts_used", "experts_per_token", "moe_router_active_experts", "expert_top_k", "top_k",
                          "num_experts_activated", "moe_num_experts_selected"}) {
    SCOPED_TRACE(key);
    EXPECT_EQ(infer_toy(named(key, 2)).to_json().at("top_k_key").as_string(), key);
  }
  EXPECT_EQ(infer_toy(named("moe", Json::object({{"top_k", 2}}))).to_json().at("top_k_key").as_string(), "moe.top_k");
  for (const char* key :
       {"moe_topk_group", "n_shared_experts_used", "moe_top_k_layers", "beam_top_k", "router_select_dim"}) {
    SCOPED_TRACE(key);
    EXPECT_THROW((void)infer_toy(named(key, 2)).to_json(), Error);
  }
  Toy both;
  both.config["top_k"] = 1;
  EXPECT_EQ(infer_toy(both).to_json().at("top_k_key").as_string(), "num_experts_per_tok");
  Toy sampling = named("top_k", 2);
  sampling.config["temperature"] = 0.7;
  EXPECT_THROW((void)infer_toy(sampling).to_json(), Error) << "a setting of sampling";
  Toy toy;
  toy.config["moe_topk"] = 1;
  refused(toy, {"disagree on the experts of a token", "'moe_topk' is 1", "rule 1"});
}

/// The toy as the language model of a wrapper whose file repeats its count.
Toy wrapped(int64_t repeated) {
  Toy toy;
  Json text = toy.config;
  text["model_type"] = "toy_text";
  toy.config = Json::object({{"model_type", "toy"}, {"num_experts", repeated}, {"text_config", text}});
  return toy;
}

TEST_F(Infer, TakesACountThatTheWholeFileRepeats) {
  const auto config = expands(wrapped(3), {});
  EXPECT_EQ(config.at("num_experts"), Json(6));
  EXPECT_EQ(config.at("text_config").at("num_experts"), Json(6));
  refused(wrapped(4), {"rule"});
  Toy toy = wrapped(3);  // two lists: one count could be of either
  for (int64_t expert = 0; expert < 3; ++expert) toy.add(cat("other.layers.0.experts.", expert, ".w"), {4, 6});
  toy.add("other.layers.0.gate.weight", {3, 6});
  refused(toy, {"'model.layers' and in 'other.layers'", "rule 1"});
  toy = wrapped(3);
  toy.config["model_type"] = "toy_text";
  refused(toy, {"two parts of config.json count 3", "rule 1"});
  toy = wrapped(3);
  toy.config["vision_config"] = Json::object({{"model_type", "eye"}, {"hidden_size", 8}, {"num_experts", 3}});
  refused(toy, {"two parts of config.json count 3", "rule 1"});
  toy = wrapped(3);
  toy.config["n_routed_experts"] = "3";
  refused(toy, {"'n_routed_experts' is \"3\"", "rule 1"});
}

TEST_F(Infer, SeesThatTheWholeFileDescribesQuantisedWeights) {
  Toy toy;
  Json text = toy.config;
  text["model_type"] = "toy_text";
  toy.config = Json::object({{"model_type", "toy"}, {"text_config", text}});
  for (HandMadeTensor& t : toy.tensors) {
    const std::string name(t.info.name);
    if (name.find("mlp.shared_experts") == std::string::npos) continue;
    t = testing::raw_tensor(cat(name.substr(0, name.find("shared")), "side.up.weight"), io::Dtype::kU8, {4, 5}, 7);
  }
  refused(toy, {"whole numbers in a layer with experts", "U8", "rule 3"});
  toy.config["quantization_config"] = Json::object({{"quant_method", "mxfp4"}});
  expands(toy, {"model.layers.0.mlp.side.up.weight"});
}

TEST_F(Infer, RefusesTablesOfTokensInAnyDtype) {
  using Shape = std::vector<int64_t>;
  const std::pair<const char*, Shape> kTables[] = {{"model.layers.0.mlp.gate.tid2eid", {11, 2}},
                                                   {"model.layers.0.mlp.gate.tid2eid", {7}},
                                                   {"model.layers.0.mlp.gate.table", {10, 2}},
                                                   {"model.layers.0.mlp.gate.by_word", {10}},
                                                   {"model.layers.0.by_word", {10, 5}},
                                                   {"model.router_by_word.weight", {10, 2}},
                                                   {"model.expert_ids", {5, 2}}};
  for (const auto& [name, shape] : kTables) {
    SCOPED_TRACE(name);
    Toy toy;
    toy.config["vocab_size"] = 10;
    toy.add(name, shape);
    refused(toy, {name, "name experts", "rule 3"});
  }
  Toy toy;
  toy.config["vocab_size"] = 10;
  toy.add("model.layers.0.per_layer_embed.weight", {10, 5});
  toy.add("lm_head.weight", {10, 6});
  EXPECT_EQ(infer_toy(toy).carried, 7u);
}

/// Adds a list of layers with a router and experts like those of the toy.
void add_layer(Toy& toy, const std::string& at, int64_t experts = 3) {
  toy.add(at + ".mlp.gate.weight", {experts, 6});
  for (int64_t expert = 0; expert < experts; ++expert) {
    toy.add(cat(at, ".mlp.experts.", expert, ".up.weight"), {4, 6});
    toy.add(cat(at, ".mlp.experts.", expert, ".down.weight"), {6, 4});
  }
}

TEST_F(Infer, TakesSeveralListsOfLayers) {
  Toy toy;
  add_layer(toy, "decoder.layers.0");
  add_layer(toy, "decoder.layers.1");
  expands(toy, {"decoder.layers.1.mlp.experts.5.up.weight"});
  add_layer(toy, "mtp.layers.0");
  expands(toy, {"decoder.layers.1.mlp.experts.5.up.weight", "mtp.layers.0.mlp.experts.5.up.weight"});
  Toy without = toy;
  without.remove("mtp.layers.0.mlp.gate.weight");
  refused(without, {"mtp.layers.0", "no router", "rule 3"});
  without = toy;
  without.remove("mtp.layers.0.mlp.experts.2.up.weight");
  refused(without, {"'mtp.layers.0.mlp.experts': expert 2 has no 'up.weight'", "rule 2"});
  add_layer(toy, "vision_tower.layers.0");
  refused(toy, {"experts in 'vision_tower.layers' and elsewhere", "rule 1"});
}

TEST_F(Infer, TakesALayerWithoutANumber) {
  Toy toy;
  add_layer(toy, "mtp");
  toy.add("mtp.norm.weight", {6});
  expands(toy, {"mtp.mlp.experts.5.up.weight", "model.layers.1.mlp.experts.5.up.weight"});
  Toy past = toy;  // and layers past the last of config.json
  add_layer(past, "model.layers.2");
  add_layer(past, "model.layers.3");
  for (const char* layer : {"2", "3"}) past.add(cat("model.layers.", layer, ".self_attn.q_proj.weight"), {6, 6});
  expands(past, {"mtp.mlp.experts.5.up.weight", "model.layers.3.mlp.experts.5.up.weight"});
  Toy without = toy;
  without.remove("mtp.mlp.gate.weight");
  refused(without, {"'mtp.mlp': no router", "rule 3"});
  toy.add("mtp.mlp.gate.e_score_correction_bias", {4});
  refused(toy, {"by its name a value for each expert", "rule 4"});
  Toy alone;
  std::erase_if(alone.tensors, [](const HandMadeTensor& t) { return t.info.name.find("layers") != std::string::npos; });
  add_layer(alone, "mtp");
  refused(alone, {"'mtp': experts in no list of layers", "rule 2"});
  Toy connector;
  add_layer(connector, "projector");
  refused(connector, {"experts in 'projector' and elsewhere", "rule 1"});
}

}  // namespace
}  // namespace coppice::infer
