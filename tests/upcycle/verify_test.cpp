#include "coppice/upcycle/verify.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <span>

#include "coppice/base/text.h"
#include "coppice/upcycle/expert_content.h"
#include "coppice/upcycle/expert_init.h"
#include "coppice/upcycle/router_init.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"
#include "tests/upcycle/checkpoints.h"

namespace coppice::upcycle {
namespace {

namespace fs = std::filesystem;
using families::Role;
using ::testing::Contains;
using ::testing::ElementsAre;
using testing::grow;
using ::testing::HasSubstr;
using testing::TempDir;
using testing::tiny_model;

VerifyResult verify_folders(const fs::path& before, const fs::path& after, size_t threads = 2) {
  return verify(families::open_model(before), families::open_model(after), threads);
}

std::vector<int64_t> parents_of(const LayerPlan& layer) {
  std::vector<int64_t> parents;
  for (const Child& child : layer.children) parents.push_back(child.parent);
  return parents;
}

/// Changes the bytes of one tensor of a model on disk.
void edit_tensor(const fs::path& model, const std::string& tensor, const std::function<void(std::span<char>)>& edit) {
  const auto checkpoint = io::Checkpoint::open(model);
  const auto entry = checkpoint.at(tensor);
  std::string bytes = io::read_file(entry.file->path());
  edit(std::span(bytes).subspan(entry.file->data_start() + entry.info->offset, entry.info->bytes));
  io::write_file_atomically(entry.file->path(), bytes);
}

void flip_a_bit(std::span<char> bytes) { bytes[0] = static_cast<char>(bytes[0] ^ 1); }

struct Methods {
  std::string family, expert_init, router_init;
};

std::vector<Methods> all_methods() {
  std::vector<Methods> all;
  for (const ExpertInit& method : expert_inits()) all.push_back({"glm4_moe", std::string(method.name), "copy"});
  for (const RouterInit& method : router_inits()) {
    if (method.name != "copy") all.push_back({"glm4_moe", "copy", std::string(method.name)});
  }
  for (const char* family : {"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
    all.push_back({family, "copy", "perturb_new_only"});
  return all;
}

class EveryMethod : public ::testing::TestWithParam<Methods> {};
INSTANTIATE_TEST_SUITE_P(Verify, EveryMethod, ::testing::ValuesIn(all_methods()), [](const auto& test) {
  return test.param.family + "_" + test.param.expert_init + "_" + test.param.router_init;
});

TEST_P(EveryMethod, FindsTheParentsOfThePlanWithoutItsLineage) {
  const TempDir dir;
  tiny_model(dir / "m", GetParam().family, {.sizes = {.num_experts = 6}, .dtype = io::Dtype::kBf16});
  const GrowthPlan plan = grow(dir / "m", dir / "out",
                               {.experts = {"15"},
                                .expert_init = {GetParam().expert_init, {}},
                                .router_init = MethodChoice{GetParam().router_init, {}},
                                .seed = 2});
  fs::remove(dir / "out" / "coppice.json");
  const VerifyResult result = verify_folders(dir / "m", dir / "out");
  EXPECT_TRUE(result.ok) << join(result.problems, "\n");
  EXPECT_EQ(result.parents.size(), plan.layers.size());
  for (const LayerPlan& layer : plan.layers) EXPECT_EQ(result.parents.at(layer.layer), parents_of(layer));
  const int64_t matrices = 3 * 15 * static_cast<int64_t>(plan.layers.size());
  EXPECT_EQ(result.experts_original + result.experts_changed, matrices);
  EXPECT_EQ(result.experts_changed > 0, !expert_init(GetParam().expert_init).same_bytes);
  EXPECT_EQ(result.router_rows_equal + result.router_rows_changed, matrices / 3);
}

TEST(VerifyTwins, FindsTheirParents) {
  const TempDir dir;
  tiny_model(dir / "m", "glm4_moe");
  for (const char* router : {"copy", "copy_noise"}) {
    for (const char* order : {"append", "siblings"}) {
      SCOPED_TRACE(std::string(router) + " " + order);
      const auto a = dir / (std::string("a") + router + order), b = dir / (std::string("b") + router + order);
      GrowthOptions options{.router_init = MethodChoice{router, {}}, .order = order};
      grow(dir / "m", a, options);
      options.seed = 1;  // the same numbers again would make the same children
      const GrowthPlan plan = grow(a, b, options);
      const VerifyResult result = verify_folders(a, b);
      EXPECT_TRUE(result.ok) << join(result.problems, "\n");
      if (std::string(router) == "copy_noise") {  // rows of twins differ, so that they can be told apart
        for (const LayerPlan& layer : plan.layers) EXPECT_EQ(result.parents.at(layer.layer), parents_of(layer));
      }
    }
  }
}

TEST(VerifyTwins, AcceptsAPlainCopyOfAModel) {
  const TempDir dir;
  tiny_model(dir / "m", "olmoe");
  fs::copy(dir / "m", dir / "same", fs::copy_options::recursive);
  EXPECT_TRUE(verify_folders(dir / "m", dir / "same").ok);
}

struct WithMore {
  std::string family, order;
  bool scaled;
};
class Verify : public ::testing::TestWithParam<WithMore> {};
INSTANTIATE_TEST_SUITE_P(ExpertsAToken, Verify,
                         ::testing::Values(WithMore{"mixtral", "append", true}, WithMore{"glm4_moe", "siblings", true},
                                           WithMore{"qwen3_moe", "append", false},
                                           WithMore{"qwen2_moe", "siblings", false}));

TEST_P(Verify, KnowsGrowthThatRoutesToMoreExpertsAToken) {
  const TempDir dir;
  const auto& [family, order, scaled] = GetParam();
  tiny_model(dir / "m", family, {.dtype = io::Dtype::kBf16});
  GrowthOptions options{.experts = {"3x"}, .router_init = MethodChoice{"copy", {}}, .order = order};
  options.scale_top_k = scaled;
  options.split = scaled ? 1 : 2;
  const GrowthPlan plan = grow(dir / "m", dir / "out", options);
  fs::remove(dir / "out" / "coppice.json");
  const VerifyResult result = verify_folders(dir / "m", dir / "out");
  EXPECT_TRUE(result.ok) << join(result.problems, "\n");
  EXPECT_EQ(result.top_k_factor, scaled ? 3 : 2);
  EXPECT_EQ(result.split, scaled ? 1 : 2);
  for (const LayerPlan& layer : plan.layers) EXPECT_EQ(result.parents.at(layer.layer), parents_of(layer));

  const auto model = families::open_model(dir / "out");
  const std::string down = testing::name_of(model, Role::kExpertDown, 1, 5);
  edit_tensor(dir / "out", down, flip_a_bit);
  const VerifyResult changed = verify_folders(dir / "m", dir / "out");
  EXPECT_EQ(changed.ok, scaled);  // a copy may be near its parent, a part of an expert is what it is
  if (!scaled) {
    EXPECT_THAT(changed.problems, ElementsAre(HasSubstr(down)));
  }
}

class VerifyNames : public ::testing::Test {
 protected:
  VerifyNames() {
    tiny_model(dir_ / "m", "glm4_moe");
    grow(dir_ / "m", dir_ / "out", {.router_init = MethodChoice{"copy", {}}});
    model_.emplace(families::open_model(dir_ / "m"));
    layer_ = 0;
    while (!model_->config.moe_layer[static_cast<size_t>(layer_)]) ++layer_;
  }
  std::string name(Role role, int64_t expert = -1) const { return testing::name_of(*model_, role, layer_, expert); }
  std::vector<std::string> problems() const {
    const VerifyResult result = verify_folders(dir_ / "m", dir_ / "out");
    EXPECT_EQ(result.ok, result.problems.empty());
    return result.problems;
  }
  TempDir dir_;
  std::optional<families::Model> model_;
  int64_t layer_;
};

TEST_F(VerifyNames, OneChangedBitOutsideExperts) {
  edit_tensor(dir_ / "out", "model.norm.weight", flip_a_bit);
  EXPECT_THAT(problems(), ::testing::ElementsAre(HasSubstr("'model.norm.weight': it changed")));
}

TEST_F(VerifyNames, AnOriginalThatChanged) {
  for (int64_t expert = 0; expert < 2 * model_->config.num_experts; expert += model_->config.num_experts) {
    edit_tensor(dir_ / "out", name(Role::kExpertUp, 1 + expert), flip_a_bit);  // the original and its copy
  }
  EXPECT_THAT(problems(), ::testing::ElementsAre(HasSubstr(cat("'", name(Role::kExpertGate, 1), "': this original"))));
}

TEST_F(VerifyNames, AnExpertOfNoParent) {
  tiny_model(dir_ / "other", "glm4_moe", {.seed = 99});
  const auto stranger = testing::bytes_of(io::Checkpoint::open(dir_ / "other").at(name(Role::kExpertGate, 0)));
  for (const Role role : {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown}) {
    edit_tensor(dir_ / "out", name(role, 5),
                [&](std::span<char> bytes) { std::memcpy(bytes.data(), stranger.data(), bytes.size()); });
  }
  EXPECT_THAT(problems(), Contains(HasSubstr(cat("'", name(Role::kExpertGate, 5), "': no parent recognised"))));
}

TEST_F(VerifyNames, RouterRowsThatWereSwapped) {
  edit_tensor(dir_ / "out", name(Role::kRouter), [&](std::span<char> bytes) {
    const auto row = static_cast<std::ptrdiff_t>(static_cast<size_t>(model_->config.model_dim) * sizeof(float));
    std::swap_ranges(bytes.begin(), bytes.begin() + row, bytes.begin() + row);
  });
  EXPECT_THAT(problems(), ::testing::ElementsAre(HasSubstr("row 0 is that of original 1"),
                                                 HasSubstr("row 1 is that of original 0")));
}

TEST_F(VerifyNames, AConfigurationThatChanged) {
  testing::edit_json(dir_ / "out" / "config.json", [](Json& config) { config["routed_scaling_factor"] = 2.5; });
  EXPECT_THAT(problems(), ::testing::ElementsAre(HasSubstr("'routed_scaling_factor' is 2.5")));
}

TEST_F(VerifyNames, ABiasThatIsNotFinite) {
  edit_tensor(dir_ / "out", name(Role::kSelectionBias), [](std::span<char> bytes) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(bytes.data(), &nan, sizeof nan);
  });
  EXPECT_THAT(problems(), Contains(HasSubstr("not finite")));
}

TEST_F(VerifyNames, AnotherFamily) {
  tiny_model(dir_ / "other", "mixtral");
  const VerifyResult result = verify_folders(dir_ / "m", dir_ / "other");
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.problems, Contains(HasSubstr("'model_type'")));
}

TEST(UnitSignature, ForgetsTheOrderOfUnitsAndNothingElse) {
  const TempDir dir;
  tiny_model(dir / "m", "mixtral");
  grow(dir / "m", dir / "out", {.expert_init = {"permute_units", {}}});
  const auto before = families::open_model(dir / "m"), after = families::open_model(dir / "out");
  const families::ExpertParts was(before), is(after);
  EXPECT_EQ(unit_signature(is, 0, 4), unit_signature(was, 0, 0));
  EXPECT_NE(unit_signature(is, 0, 4), unit_signature(was, 0, 1));
  EXPECT_NE(expert_digest(is, 0, 4), expert_digest(was, 0, 0));
}

TEST(Cosine, IsOneForZeroVectorsAndZeroAgainstThem) {
  const std::vector<float> zero(3), one = {1, 2, 3}, minus = {-1, -2, -3};
  EXPECT_EQ(cosine(zero, zero), 1);
  EXPECT_EQ(cosine(zero, one), 0);
  EXPECT_DOUBLE_EQ(cosine(one, minus), -1);
}

TEST(VerifyResultToJson, HoldsTheWholeAccount) {
  const TempDir dir;
  tiny_model(dir / "m", "qwen2_moe");
  grow(dir / "m", dir / "out", {});
  const VerifyResult result = verify_folders(dir / "m", dir / "out", 1);
  const Json json = result.to_json();
  EXPECT_TRUE(json.at("ok").as_bool());
  EXPECT_EQ(json.at("experts").dump(), "[4, 8]");
  EXPECT_EQ(json.at("parents").at("0").dump(), "[0, 1, 2, 3, 0, 1, 2, 3]");
}

}  // namespace
}  // namespace coppice::upcycle
