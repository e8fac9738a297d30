#include "coppice/families/family_file.h"

#include <gtest/gtest.h>

#include "coppice/base/text.h"
#include "coppice/models/expert_tensors.h"
#include "tests/testing/errors.h"
#include "tests/testing/hand_made_models.h"
#include "tests/testing/temp_dir.h"

namespace coppice::families {
namespace {

using testing::expect_error;
using testing::f32_tensor;
using testing::TempDir;

constexpr std::string_view kBamboo = R"(
model_type = "bamboo"
experts_keys = ["how_many"]
top_k_key = "routing.best"
gate = "sigmoid_topk"
renormalise = true
decoder_trunk = false
[[tensors]]
name = "block.{L}.choose.weight"
role = "router"
[[tensors]]
name = "block.{L}.stems.in"
role = "expert_gate_up"
stacked = true
transposed = true
[[tensors]]
name = "block.{L}.stems.out"
role = "expert_down"
stacked = true
transposed = true
[[tensors]]
name = "root.**"
role = "other"
)";

FamilyFile file_of(const TempDir& dir, const std::string& text) {
  io::write_file_atomically(dir / "family.toml", text);
  return FamilyFile::read(dir / "family.toml");
}

std::string with(std::string_view from, std::string_view to) {
  std::string text(kBamboo);
  return text.replace(text.find(from), from.size(), to);
}

TEST(FamilyFile, DescribesAModelThatNoTableKnows) {
  const TempDir dir;
  const FamilyFile file = file_of(dir, std::string(kBamboo));
  const Json config =
      Json::parse(R"({"model_type": "bamboo", "hidden_size": 8, "how_many": 3, "routing": {"best": 2}})", "test");
  const auto path = testing::write_model(
      dir / "m", config,
      {f32_tensor("root.soil.weight", {2}, 1), f32_tensor("block.0.choose.weight", {3, 8}, 2),
       f32_tensor("block.0.stems.in", {3, 8, 12}, 3), f32_tensor("block.0.stems.out", {3, 6, 8}, 4)});
  const Model model = open_model(path, &file.family());
  EXPECT_EQ(model.config.num_experts, 3);
  EXPECT_EQ(model.config.top_k, 2);
  EXPECT_EQ(model.config.num_layers, 1);
  EXPECT_EQ(model.config.expert_width, 6);
  EXPECT_TRUE(model.config.routing.renormalise);
  EXPECT_EQ(with_num_experts(model.config, 6).at("how_many"), Json(6));
  EXPECT_EQ(models::ExpertTensors(model).of(0, 1).size(), 2u);
  expect_error(ErrorCode::kUnsupported, {"'bamboo' is not a family", "--family-file"}, [&] { (void)open_model(path); });
}

TEST(FamilyFile, LeavesUnknownWhatItDoesNotSay) {
  const TempDir dir;
  EXPECT_EQ(file_of(dir, with("gate = \"sigmoid_topk\"\n", "")).family().gate, GateFunction::kUnknown);
  EXPECT_EQ(file_of(dir, with("renormalise = true\n", "")).family().renormalise.kind, Switch::Kind::kUnknown);
  EXPECT_FALSE(file_of(dir, std::string(kBamboo)).family().group_score_known);
  const FamilyFile grouped =
      file_of(dir, with("renormalise = true\n", "renormalise = true\ngroups = true\ngroup_score = \"best\"\n"));
  EXPECT_TRUE(grouped.family().group_score_known);
  EXPECT_EQ(grouped.family().group_score, GroupScore::kBest);
}

TEST(FamilyFile, NamesTheKeyThatIsWrong) {
  const TempDir dir;
  const auto refuses = [&](std::string_view from, std::string_view to, std::initializer_list<const char*> parts) {
    SCOPED_TRACE(to);
    expect_error(ErrorCode::kFormat, parts, [&] { (void)file_of(dir, with(from, to)); });
  };
  refuses("top_k_key", "top_key", {"family.toml", "'top_key' is not a key of a family", "top_k_key"});
  refuses("\"expert_down\"", "\"expert_dawn\"", {"tensors[2]", "'expert_dawn'", "expert_down"});
  refuses("experts_keys = [\"how_many\"]", "", {"'experts_keys' is missing"});
  refuses("sigmoid_topk", "topk_sigmoid", {"'gate'", "sigmoid_topk"});
  refuses("stacked = true\ntransposed = true\n[[tensors]]\nname = \"root", "[[tensors]]\nname = \"root",
          {"tensors[2]", "must have {X}"});
  refuses("block.{L}.choose", "block.{Q}.choose", {"tensors[0]", "'name'"});
  refuses("block.{L}.choose", "*.{L}.choose", {"tensors[0]", "wildcard"});
  refuses("root.**", "root.*.3.soil", {"tensors[3]", "wildcard before a number"});
  refuses("block.{L}.choose", "block.choose", {"tensors[0]", "{L}", "first_layer"});
  refuses("role = \"router\"", "role = \"router\"\nfirst_layer = -1", {"tensors[0]", "'first_layer' is -1"});
  refuses("block.{L}.choose.weight\"", "block.{M}.choose.weight\"\nfirst_layer = 1", {"'first_layer'", "{M}"});
  refuses("role = \"router\"", "role = \"other\"", {"has no tensor with the role router"});
}

// A family of separate experts, of which `rules` gives the rows that differ.
std::string moss(std::string_view rules) {
  return cat(R"(
model_type = "moss"
experts_keys = ["how_many"]
top_k_key = "best"
gate = "sigmoid_topk"
renormalise = true
decoder_trunk = false
[[tensors]]
name = "block.{L}.mlp.gate.weight"
role = "router"
)",
             rules);
}
constexpr std::string_view kGateUpDown = R"(
[[tensors]]
name = "block.{L}.mlp.experts.{X}.g.weight"
role = "expert_gate"
[[tensors]]
name = "block.{L}.mlp.experts.{X}.u.weight"
role = "expert_up"
[[tensors]]
name = "block.{L}.mlp.experts.{X}.d.weight"
role = "expert_down"
)";
constexpr std::string_view kRest = "[[tensors]]\nname = \"block.{L}.mlp.**\"\nrole = \"other\"\n";

class FamilyFileRules : public ::testing::Test {
 protected:
  void opens(const std::string& rules, std::vector<testing::HandMadeTensor> more = {}) {
    const FamilyFile file = file_of(dir_, moss(rules));
    std::vector<testing::HandMadeTensor> tensors{f32_tensor("block.0.mlp.gate.weight", {3, 8}, 1)};
    for (const char* expert : {"0", "1", "2"}) {
      const std::string module = cat("block.0.mlp.experts.", expert);
      tensors.push_back(f32_tensor(module + ".g.weight", {6, 8}, 2));
      tensors.push_back(f32_tensor(module + ".u.weight", {6, 8}, 3));
      tensors.push_back(f32_tensor(module + ".d.weight", {8, 6}, 4));
    }
    std::ranges::move(more, std::back_inserter(tensors));
    const Json config = Json::parse(R"({"model_type": "moss", "hidden_size": 8, "how_many": 3, "best": 2})", "test");
    (void)open_model(testing::write_model(dir_ / cat("m", ++count_), config, tensors), &file.family());
  }
  void refuses(const std::string& rules, ErrorCode code, std::initializer_list<const char*> parts,
               std::vector<testing::HandMadeTensor> more = {}) {
    expect_error(code, parts, [&] { opens(rules, std::move(more)); });
  }
  TempDir dir_;
  int count_ = 0;
};

TEST_F(FamilyFileRules, CarryOverWhatHasToDoWithNoExpert) {
  opens(cat(kGateUpDown, kRest),
        {f32_tensor("block.0.mlp.shared_experts.0.up.weight", {6, 8}, 5), f32_tensor("block.0.mlp.gate.scale", {1}, 6),
         f32_tensor("block.0.mlp.norm.weight", {3}, 7)});
}

TEST_F(FamilyFileRules, CarryNothingOverThatIsInsideAnExpert) {
  const std::string_view without_up = R"(
[[tensors]]
name = "block.{L}.mlp.experts.{X}.g.weight"
role = "expert_gate"
[[tensors]]
name = "block.{L}.mlp.experts.{X}.d.weight"
role = "expert_down"
)";
  refuses(cat(without_up, kRest), ErrorCode::kFormat,
          {"3 that the family file copies", "block.0.mlp.experts.0.u.weight [6, 8] is inside an expert",
           "rule 'block.{L}.mlp.**', role other"});
  refuses(cat(without_up, "[[tensors]]\nname = \"block.{L}.mlp.experts.{N}.u.weight\"\nrole = \"dense\"\n"),
          ErrorCode::kFormat, {"block.0.mlp.experts.2.u.weight", "role dense"});
}

TEST_F(FamilyFileRules, CarryNothingOverThatHasAValueForEachExpert) {
  for (const char* name : {"block.0.mlp.gate.bias", "block.0.mlp.experts.bias", "block.0.mlp.expert_bias",
                           "block.0.mlp.statics.e_score_correction_bias"}) {
    for (const std::vector<int64_t>& shape : {std::vector<int64_t>{3}, std::vector<int64_t>{1, 3}}) {
      refuses(cat(kGateUpDown, kRest), ErrorCode::kFormat, {name, "the number of experts", "rule 'block.{L}.mlp.**'"},
              {f32_tensor(name, shape, 5)});
    }
  }
  const std::string trunk = "[[tensors]]\nname = \"block.{L}.mlp.gate.below\"\nrole = \"router_trunk\"\n";
  opens(cat(kGateUpDown, trunk), {f32_tensor("block.0.mlp.gate.below", {8, 3}, 5)});
}

TEST_F(FamilyFileRules, MayDescribeASecondListOfLayers) {
  const auto second = [](int64_t first_layer) {
    std::string out;
    for (const auto& [name, role] : {std::pair{"gate.weight", "router"},
                                     {"experts.{X}.g.weight", "expert_gate"},
                                     {"experts.{X}.u.weight", "expert_up"},
                                     {"experts.{X}.d.weight", "expert_down"}}) {
      out += cat("[[tensors]]\nname = \"next.", name, "\"\nrole = \"", role, "\"\nfirst_layer = ", first_layer, "\n");
    }
    return out;
  };
  std::vector<testing::HandMadeTensor> more{f32_tensor("next.gate.weight", {3, 8}, 1)};
  for (const char* expert : {"0", "1", "2"}) {
    more.push_back(f32_tensor(cat("next.experts.", expert, ".g.weight"), {6, 8}, 2));
    more.push_back(f32_tensor(cat("next.experts.", expert, ".u.weight"), {6, 8}, 3));
    more.push_back(f32_tensor(cat("next.experts.", expert, ".d.weight"), {8, 6}, 4));
  }
  opens(cat(kGateUpDown, second(1)), more);
  refuses(cat(kGateUpDown, second(0)), ErrorCode::kFormat, {"another list has a layer 0"}, more);
  more.erase(more.begin());
  refuses(cat(kGateUpDown, second(1)), ErrorCode::kFormat, {"1 missing: next.gate.weight"}, more);
}

TEST_F(FamilyFileRules, GiveAnExpertMatricesThatFit) {
  std::string exchanged(kGateUpDown);
  for (const auto& [from, to] :
       {std::pair{"expert_gate", "EXPERT"}, {"expert_down", "expert_gate"}, {"EXPERT", "expert_down"}})
    exchanged.replace(exchanged.find(from), std::string_view(from).size(), to);
  refuses(exchanged, ErrorCode::kShape,
          {"block.0.mlp.experts.0.", "[8, 6]", "[6, 8]", "do not fit each other", "a width of", "expert_up"});
}

TEST(FamilyFile, RefusesAModelOfAnotherType) {
  const TempDir dir;
  const FamilyFile file = file_of(dir, std::string(kBamboo));
  expect_error(ErrorCode::kUnsupported, {"model_type is 'oak'", "'bamboo'"},
               [&] { (void)read_config(Json::parse(R"({"model_type": "oak"})", "test"), "test", &file.family()); });
}

// What config.json says of the router and the file does not.
TEST(FamilyFile, DoesNotPassOverKeysOfTheRouter) {
  const TempDir dir;
  const auto read = [&](const std::string& file_text, std::string_view more) {
    const FamilyFile file = file_of(dir, file_text);
    Json config = Json::parse(R"({"model_type": "bamboo", "how_many": 4, "routing": {"best": 2}})", "test");
    const Json extra = Json::parse(more, "test");
    for (const auto& [key, value] : extra.members()) config[key] = value;
    return read_config(config, "test", &file.family()).routing;
  };
  const std::string plain(kBamboo);
  expect_error(ErrorCode::kUnsupported, {"'n_group' is 2", "groups = true", "groups = false"},
               [&] { (void)read(plain, R"({"n_group": 2, "topk_group": 1})"); });
  EXPECT_EQ(read(plain, R"({"n_group": 1})").num_groups, 1);
  EXPECT_EQ(read(with("decoder_trunk", "groups = false\ndecoder_trunk"), R"({"n_group": 2})").num_groups, 1);
  EXPECT_EQ(
      read(with("decoder_trunk", "groups = true\ndecoder_trunk"), R"({"n_group": 2, "topk_group": 1})").num_groups, 2);
  expect_error(ErrorCode::kUnsupported, {"'score_function'", "sigmoid"},
               [&] { (void)read(plain, R"({"score_function": "softmax"})"); });
  expect_error(ErrorCode::kUnsupported, {"'norm_topk_prob' is false", "renormalise = true"},
               [&] { (void)read(plain, R"({"norm_topk_prob": false})"); });
  const std::string raw = with("renormalise = true", "renormalise = false");
  expect_error(ErrorCode::kUnsupported, {"'routed_scaling_factor' is 2.5", "routed_scaling_key"},
               [&] { (void)read(raw, R"({"routed_scaling_factor": 2.5})"); });
  const std::string scaled = with("renormalise = true", "renormalise = false\nrouted_scaling_key = \"scale\"");
  EXPECT_EQ(read(scaled, R"({"scale": 2.5})").routed_scaling, 2.5);
  expect_error(ErrorCode::kUnsupported, {"'zero_expert_num' is 2", "trailing_key"},
               [&] { (void)read(plain, R"({"zero_expert_num": 2})"); });
}

}  // namespace
}  // namespace coppice::families
