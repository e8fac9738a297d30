#include "coppice/verify/verify.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <span>

#include "coppice/base/text.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/methods/router_init.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/undo.h"
#include "coppice/verify/expert_content.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::verify {
namespace {

using methods::LayerPlan;
using methods::MethodChoice;
using plan::GrowthOptions;
using plan::GrowthPlan;

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
  for (const methods::Child& child : layer.children) parents.push_back(child.parent);
  return parents;
}

/// Changes the bytes of one tensor of a model on disk.
void edit_tensor(const fs::path& model, const std::string& tensor, const std::function<void(std::span<char>)>& edit) {
  const auto checkpoint = io::Checkpoint::open(model);
  const auto entry = checkpoint.at(tensor);
  std::string bytes = read_file(entry.file->path());
  edit(std::span(bytes).subspan(entry.file->data_start() + entry.info->offset, entry.info->bytes));
  io::write_file_atomically(entry.file->path(), bytes);
}

void flip_a_bit(std::span<char> bytes) { bytes[0] = static_cast<char>(bytes[0] ^ 1); }

struct Methods {
  std::string family, expert_init, router_init;
};

std::vector<Methods> all_methods() {
  std::vector<Methods> all;
  for (const methods::ExpertInit& method : methods::expert_inits())
    all.push_back({"glm4_moe", std::string(method.name), "copy"});
  for (const methods::RouterInit& method : methods::router_inits()) {
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
  EXPECT_EQ(result.experts_changed > 0, !methods::expert_init(GetParam().expert_init).same_bytes);
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

/// A method with one parameter at one end of its range, or none.
struct Extreme {
  std::string name;
  MethodChoice expert_init{"copy", {}}, router_init{"copy", {}}, optimizer_state{"copy", {}};
};

void add_extremes(std::vector<Extreme>& all, std::string_view method, std::span<const methods::ParamSpec> params,
                  MethodChoice Extreme::* member) {
  const auto add = [&](const std::string& name, MethodChoice choice) {
    Extreme& extreme = all.emplace_back(Extreme{.name = name});
    extreme.*member = std::move(choice);
  };
  add(std::string(method), {std::string(method), {}});
  for (const methods::ParamSpec& spec : params) {
    for (const double value : {spec.lo, spec.hi})
      add(cat(method, ":", spec.key, "=", value), {std::string(method), {{std::string(spec.key), value}}});
  }
}

std::vector<Extreme> all_extremes() {
  std::vector<Extreme> all;
  for (const methods::ExpertInit& method : methods::expert_inits())
    add_extremes(all, method.name, method.params, &Extreme::expert_init);
  for (const methods::RouterInit& method : methods::router_inits())
    add_extremes(all, method.name, method.params, &Extreme::router_init);
  for (const methods::OptimizerInit& method : methods::optimizer_inits())
    add_extremes(all, method.name, method.params, &Extreme::optimizer_state);
  return all;
}

struct Start {
  const char* family;
  double std;
  io::Dtype dtype;
};
class EveryExtreme : public ::testing::TestWithParam<Start> {};
INSTANTIATE_TEST_SUITE_P(Verify, EveryExtreme,
                         ::testing::Values(Start{"glm4_moe", 0.006, io::Dtype::kBf16},
                                           Start{"gpt_oss", 0.02, io::Dtype::kBf16},
                                           Start{"granitemoe", 0.02, io::Dtype::kF32}),
                         [](const auto& test) { return std::string(test.param.family); });

TEST_P(EveryExtreme, IsMadeAgainFromTheLineage) {
  const TempDir dir;
  const auto [family, std, dtype] = GetParam();
  tiny_model(dir / "m", family,
             {.sizes = {.vocab_size = 16, .model_dim = 32, .num_layers = 1, .expert_width = 16, .dense_width = 16},
              .dtype = dtype,
              .std = std});
  testing::write_trainer(dir / "m");
  const auto before = families::open_model(dir / "m");
  size_t grown = 0;
  for (const Extreme& extreme : all_extremes()) {
    const bool needs_bias = methods::router_init(extreme.router_init.name).needs_bias;
    if (needs_bias && !before.config.routing.has_router_bias && !before.config.routing.has_selection_bias) continue;
    SCOPED_TRACE(extreme.name);
    const fs::path out = dir / cat("out", grown++);
    grow(dir / "m", out,
         {.experts = {"7"},
          .expert_init = extreme.expert_init,
          .router_init = extreme.router_init,
          .optimizer_state = extreme.optimizer_state,
          .seed = 5});
    const VerifyResult result = verify_folders(dir / "m", out);
    EXPECT_EQ(result.verdict(), "ok: every tensor is accounted for") << join(result.problems, "\n");
    EXPECT_GT(result.optimizer_tensors, 0);
    fs::remove_all(out);
  }
  EXPECT_GT(grown, 40u);
}

class EveryStandardDeviation : public ::testing::TestWithParam<double> {};
INSTANTIATE_TEST_SUITE_P(Verify, EveryStandardDeviation, ::testing::Values(0.002, 0.006, 0.02, 0.05));

// Redrawn columns are as large as xavier has them, however small the weights are.
TEST_P(EveryStandardDeviation, FindsParentsOfExpertsThatWereRedrawnInPart) {
  const TempDir dir;
  tiny_model(dir / "m", "qwen3_moe", {.std = GetParam()});
  for (const char* method : {"drop_upcycle", "drop_upcycle:init=1", "drop_upcycle:ratio=0.9", "drop_units:ratio=0.9"}) {
    SCOPED_TRACE(method);
    const fs::path out = dir / method;
    const GrowthPlan plan = grow(dir / "m", out, {.expert_init = MethodChoice::from_text(method)});
    fs::remove(out / "coppice.json");
    const VerifyResult result = verify_folders(dir / "m", out);
    EXPECT_TRUE(result.ok) << join(result.problems, "\n");
    for (const LayerPlan& layer : plan.layers) EXPECT_EQ(result.parents.at(layer.layer), parents_of(layer));
  }
}

TEST(VerifyLineage, KnowsUndoneAndChainedGrowthsAndChecksTheirSteps) {
  const TempDir dir;
  tiny_model(dir / "m", "glm4_moe");
  testing::write_trainer(dir / "m");
  grow(dir / "m", dir / "once", {.expert_init = {"copy_noise", {}}, .balance_bias = "zero"});
  grow(dir / "once", dir / "twice", {.experts = {"11"}, .expert_init = {"drop_units", {}}, .seed = 9});
  const auto undo = [](const fs::path& from, const fs::path& to) {
    const auto model = families::open_model(from);
    (void)grow::expand(model, plan::undo_plan(model.config, plan::read_lineage(from)), {.out = to});
  };
  undo(dir / "twice", dir / "back");
  undo(dir / "back", dir / "first");
  const auto verdict = [&](const char* before, const char* after) {
    const VerifyResult result = verify_folders(dir / before, dir / after);
    return cat(result.made_by, "; ", result.verdict(), join(result.problems, "\n"));
  };
  const std::string ok = "; ok: every tensor is accounted for";
  EXPECT_EQ(verdict("m", "once"), "the expansion in coppice.json" + ok);
  EXPECT_EQ(verdict("once", "twice"), "the expansion in coppice.json" + ok);
  EXPECT_EQ(verdict("twice", "back"), "undoing the newest expansion" + ok);
  EXPECT_EQ(verdict("once", "back"), "an unchanged copy" + ok);
  EXPECT_EQ(verdict("m", "first"), "an unchanged copy" + ok);
  const VerifyResult far = verify_folders(dir / "m", dir / "twice");
  EXPECT_TRUE(far.ok) << join(far.problems, "\n");
  EXPECT_THAT(far.not_compared, Contains(HasSubstr("coppice.json, whose newest expansion started from another model")));

  testing::edit_json(dir / "twice" / "coppice.json", [](Json& lineage) {
    Json::Array steps = lineage.at("steps").items();
    steps[0]["seed"] = Json(1);
    lineage["steps"] = Json::array(steps);
  });
  EXPECT_FALSE(verify_folders(dir / "once", dir / "twice").ok);
}

TEST(VerifyLineage, MakesTheGrowthAgainWhateverItsDigestSays) {
  const TempDir dir;
  tiny_model(dir / "m", "mixtral");
  grow(dir / "m", dir / "out", {.router_init = MethodChoice{"copy", {}}});
  testing::edit_json(dir / "out" / "coppice.json", [](Json& lineage) {
    Json::Array steps = lineage.at("steps").items();
    steps[0]["source_digest"] = std::string(64, '0');
    lineage["steps"] = Json::array(steps);
  });
  const std::string about_digest =
      "the digest in coppice.json, which says that the newest expansion started from another model";
  const VerifyResult right = verify_folders(dir / "m", dir / "out");
  EXPECT_EQ(right.verdict(), "ok: every tensor is accounted for; not compared: " + about_digest);
  EXPECT_EQ(right.made_by, "the expansion in coppice.json");

  const auto model = families::open_model(dir / "out");
  const std::string down = testing::name_of(model, Role::kExpertDown, 1, 7);
  edit_tensor(dir / "out", down, [](std::span<char> bytes) { std::ranges::reverse(bytes); });
  EXPECT_THAT(verify_folders(dir / "m", dir / "out").problems, ElementsAre(HasSubstr(down), about_digest));
}

class VerifyLineageFile : public ::testing::Test {
 protected:
  VerifyLineageFile() {
    tiny_model(dir_ / "m", "mixtral");
    testing::write_trainer(dir_ / "m");
    grow(dir_ / "m", dir_ / "out", {.router_init = MethodChoice{"copy", {}}});
  }
  /// The check after `edit` of the lineage and its newest step.
  VerifyResult edited(const std::function<void(Json&, Json&)>& edit) const {
    const fs::path file = dir_ / "out" / "coppice.json";
    const std::string saved = read_file(file);
    testing::edit_json(file, [&](Json& lineage) {
      Json::Array steps = lineage.at("steps").items();
      edit(lineage, steps.back());
      lineage["steps"] = Json::array(steps);
    });
    VerifyResult result = verify_folders(dir_ / "m", dir_ / "out");
    io::write_file_atomically(file, saved);
    return result;
  }
  TempDir dir_;
};

TEST_F(VerifyLineageFile, HoldsNothingThatTheGrowthDidNotLeave) {
  EXPECT_EQ(edited([](Json&, Json&) {}).verdict(), "ok: every tensor is accounted for");
  EXPECT_THAT(
      edited([](Json& lineage, Json&) {
        lineage["routing"] = "lineage_unique";
        lineage["share"] = 1.0;
      }).problems,
      ElementsAre(HasSubstr("coppice.json: 'routing' is \"lineage_unique\"; wanted no such key after an expansion"),
                  HasSubstr("'share' is 1.0")));
  EXPECT_THAT(edited([](Json& lineage, Json&) { lineage["note"] = 1; }).problems, ElementsAre(HasSubstr("'note'")));
  EXPECT_THAT(edited([](Json&, Json& step) { step["released_at"] = 5; }).problems,
              ElementsAre(HasSubstr("coppice.json: step 0: 'released_at' is 5")));
  EXPECT_THAT(edited([](Json&, Json& step) { step["selection_bias_factor"] = 0.5; }).problems,
              ElementsAre(HasSubstr("'selection_bias_factor'")));
  EXPECT_THAT(edited([](Json&, Json& step) { step["command"] = "inspect"; }).problems,
              ElementsAre(HasSubstr("'command' is 'inspect'")));
}

TEST_F(VerifyLineageFile, OfARunMayNoteItsRouting) {
  const VerifyResult result = edited([](Json& lineage, Json& step) {
    step["command"] = "train";
    lineage["routing"] = "lineage_unique";
    lineage["share"] = 0.75;
    lineage["seed"] = 3;
    lineage["share_steps"] = 8;
    lineage["wake_steps"] = 5;
    lineage["wake_steps_left"] = 2;
    step["released_at"] = 4;
  });
  EXPECT_TRUE(result.ok) << join(result.problems, "\n");
  EXPECT_THAT(result.not_compared,
              ElementsAre(HasSubstr("lineage-unique routing in coppice.json (0.75)"), HasSubstr("trainer.json")));
}

TEST_F(VerifyLineageFile, IsThatOfACopy) {
  fs::copy(dir_ / "out", dir_ / "copy", fs::copy_options::recursive);
  EXPECT_TRUE(verify_folders(dir_ / "out", dir_ / "copy").ok);
  testing::edit_json(dir_ / "copy" / "coppice.json", [](Json& lineage) { lineage["routing"] = "lineage_unique"; });
  EXPECT_THAT(verify_folders(dir_ / "out", dir_ / "copy").problems, ElementsAre(HasSubstr("'routing'")));
}

TEST(VerifyLineage, MakesEveryOptionAgain) {
  const TempDir dir;
  const auto check = [&](const char* family, const GrowthOptions& options) {
    const fs::path model = dir / family;
    if (!fs::exists(model)) tiny_model(model, family, {.dtype = io::Dtype::kBf16, .std = 0.02});
    const fs::path out = dir / "out";
    grow(model, out, options);
    const VerifyResult result = verify_folders(model, out);
    EXPECT_EQ(result.verdict(), "ok: every tensor is accounted for") << family << "\n" << join(result.problems, "\n");
    EXPECT_EQ(result.made_by, "the expansion in coppice.json");
    fs::remove_all(out);
  };
  for (const char* family : {"glm4_moe", "dots1", "gpt_oss", "mixtral", "olmoe"}) {
    check(family, {.router_init = MethodChoice{"copy", {}}, .scale_top_k = true});
    check(family, {.experts = {"3x"}, .expert_init = {"scaled_copy", {}}, .order = "siblings", .scale_top_k = true});
    check(family, {.split = 2});
    check(family, {.order = "siblings", .seed = ~uint64_t{0}, .split = 4});
    check(family, {.experts = {"5"}, .expert_init = {"svd_mix", {}}, .seed = ~uint64_t{0}});
  }
  check("glm4_moe", {.router_init = MethodChoice::from_text("bias_only:noise_to_original=1,delta=0.5,shift=-10")});
  check("glm4_moe", {.router_init = MethodChoice{"copy", {}}, .balance_bias = "zero"});
}

TEST(VerifyConfiguration, IsComparedByWhatItSays) {
  const TempDir dir;
  tiny_model(dir / "m", "qwen3_moe");
  const fs::path config = dir / "out" / "config.json";
  const auto problems_after = [&](const auto& edit) {
    fs::remove_all(dir / "out");
    grow(dir / "m", dir / "out", {});
    testing::edit_json(config, edit);
    return verify_folders(dir / "m", dir / "out").problems;
  };
  EXPECT_THAT(problems_after([](Json& c) {  // as transformers 5 writes it
                const double theta = c.at("rope_theta").as_double();
                c.erase("rope_theta");
                c["rope_parameters"] = Json::object({{"rope_theta", Json(theta)}, {"rope_type", Json("default")}});
                c.erase("num_experts");
                c["num_local_experts"] = 8;
                c["dtype"] = c.at("torch_dtype");
                c.erase("torch_dtype");
                c["transformers_version"] = "5.17.0";
                c["sliding_window"] = Json();
              }),
              ::testing::IsEmpty());
  EXPECT_THAT(problems_after([](Json& c) { c["rope_theta"] = 5.0; }), ElementsAre(HasSubstr("'rope_theta' is 5.0")));
  EXPECT_THAT(problems_after([](Json& c) {
                c["rope_parameters"] = Json::object({{"rope_theta", Json(5.0)}, {"rope_type", Json("default")}});
              }),
              ElementsAre(HasSubstr("rotary embeddings")));
  EXPECT_THAT(problems_after([](Json& c) { c["norm_topk_prob"] = !c.at("norm_topk_prob").as_bool(); }),
              ElementsAre(HasSubstr("'norm_topk_prob'")));
  EXPECT_THAT(problems_after([](Json& c) { c.erase("norm_topk_prob"); }), ElementsAre(HasSubstr("'norm_topk_prob'")));
  EXPECT_THAT(problems_after([](Json& c) {
                c["use_sliding_window"] = true;
                c["sliding_window"] = 4;
                c["max_window_layers"] = 0;
              }),
              ::testing::Not(::testing::IsEmpty()));
}

TEST(VerifyFiles, TellsThoseThatNoGrowthWrites) {
  const TempDir dir;
  tiny_model(dir / "m", "mixtral");
  grow(dir / "m", dir / "out", {});
  const auto check = [&] { return verify_folders(dir / "m", dir / "out"); };
  io::write_file_atomically(dir / "out" / "notes.bak", "x");
  fs::create_directory(dir / "out" / "original");
  io::write_file_atomically(dir / "out" / "original" / "consolidated.00.pth", "x");
  io::write_file_atomically(dir / "out" / "pytorch_model.bin", "x");
  EXPECT_EQ(check().problems, std::vector<std::string>{});
  EXPECT_THAT(check().not_compared, Contains("files that an expansion does not copy (original/, pytorch_model.bin)"));
  io::write_file_atomically(dir / "out" / "adapter_config.json", R"({"peft_type": "LORA"})");
  EXPECT_THAT(check().problems,
              ElementsAre(HasSubstr("'adapter_config.json': is new; the model before has no such file")));
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
  EXPECT_FALSE(changed.ok);
  EXPECT_THAT(changed.problems, ElementsAre(HasSubstr(down)));
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
  EXPECT_THAT(problems(), ::testing::ElementsAre(HasSubstr("'model.norm.weight': its bytes changed")));
}

TEST_F(VerifyNames, AnOriginalThatChangedAndItsCopy) {
  const std::string original = name(Role::kExpertUp, 1), copy = name(Role::kExpertUp, 1 + model_->config.num_experts);
  for (const std::string& tensor : {original, copy}) edit_tensor(dir_ / "out", tensor, flip_a_bit);
  EXPECT_THAT(problems(), ::testing::UnorderedElementsAre(HasSubstr(cat("'", original, "': its bytes changed")),
                                                          HasSubstr(cat("'", copy, "': its bytes changed"))));
  fs::remove(dir_ / "out" / "coppice.json");
  EXPECT_THAT(problems(), Contains(HasSubstr(cat("'", original, "': expert_up of original 1 changed"))));
}

TEST_F(VerifyNames, AnExpertOfNoParent) {
  tiny_model(dir_ / "other", "glm4_moe", {.seed = 99});
  const auto stranger = testing::bytes_of(io::Checkpoint::open(dir_ / "other").at(name(Role::kExpertGate, 0)));
  for (const Role role : {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown}) {
    edit_tensor(dir_ / "out", name(role, 5),
                [&](std::span<char> bytes) { std::memcpy(bytes.data(), stranger.data(), bytes.size()); });
  }
  EXPECT_THAT(problems(), Contains(HasSubstr(cat("'", name(Role::kExpertGate, 5), "': its bytes changed"))));
  fs::remove(dir_ / "out" / "coppice.json");
  EXPECT_THAT(problems(), Contains(HasSubstr(cat("'", name(Role::kExpertGate, 5), "': no parent recognised"))));
}

TEST_F(VerifyNames, RouterRowsThatWereSwapped) {
  fs::remove(dir_ / "out" / "coppice.json");
  edit_tensor(dir_ / "out", name(Role::kRouter), [&](std::span<char> bytes) {
    const auto row = static_cast<std::ptrdiff_t>(static_cast<size_t>(model_->config.model_dim) * sizeof(float));
    std::swap_ranges(bytes.begin(), bytes.begin() + row, bytes.begin() + row);
  });
  EXPECT_THAT(problems(), Contains(HasSubstr("row 0 is that of original 1")));
  EXPECT_THAT(problems(), Contains(HasSubstr("row 1 is that of original 0")));
}

TEST_F(VerifyNames, AConfigurationThatChanged) {
  testing::edit_json(dir_ / "out" / "config.json", [](Json& config) { config["routed_scaling_factor"] = 2.5; });
  EXPECT_THAT(problems(), ::testing::ElementsAre(HasSubstr("'routed_scaling_factor' is 2.5")));
}

TEST_F(VerifyNames, ABiasThatIsNotFinite) {
  fs::remove(dir_ / "out" / "coppice.json");
  edit_tensor(dir_ / "out", name(Role::kSelectionBias), [](std::span<char> bytes) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(bytes.data() + bytes.size() - sizeof nan, &nan, sizeof nan);
  });
  EXPECT_THAT(problems(), Contains(HasSubstr("not finite")));
}

TEST_F(VerifyNames, AnotherFamily) {
  tiny_model(dir_ / "other", "mixtral");
  const VerifyResult result = verify_folders(dir_ / "m", dir_ / "other");
  EXPECT_FALSE(result.ok);
  EXPECT_THAT(result.problems, Contains(HasSubstr("'model_type'")));
}

TEST(LikenessOfExperts, IsByColumnsRowsAndOrder) {
  const TempDir dir;
  tiny_model(dir / "m", "mixtral");
  const auto like_of = [&](const char* method, Role role, int64_t original) {
    const fs::path out = dir / method;
    if (!fs::exists(out)) grow(dir / "m", out, {.expert_init = {method, {}}});
    const auto before = families::open_model(dir / "m"), after = families::open_model(out);
    const models::ExpertTensors was(before), is(after);
    const auto of_role = [role](const auto& matrices) {
      return content_of(*std::ranges::find(matrices, role, &ExpertMatrixRef::role));
    };
    return likeness(of_role(matrices_of(is, 0, 4)), of_role(matrices_of(was, 0, original)));
  };
  EXPECT_EQ(like_of("copy", Role::kExpertUp, 0).kind, Likeness::kEqual);
  EXPECT_EQ(like_of("copy", Role::kExpertUp, 1).kind, Likeness::kNone);
  EXPECT_EQ(like_of("drop_upcycle", Role::kExpertUp, 0).kind, Likeness::kColumns);
  EXPECT_EQ(like_of("drop_upcycle", Role::kExpertUp, 0).share, 0.5);
  EXPECT_EQ(like_of("drop_units", Role::kExpertUp, 0).kind, Likeness::kRows);
  EXPECT_EQ(like_of("drop_units", Role::kExpertDown, 0).kind, Likeness::kColumns);
  EXPECT_EQ(like_of("permute_units", Role::kExpertDown, 0).kind, Likeness::kReordered);
  EXPECT_EQ(like_of("shuffle_columns", Role::kExpertGate, 0).kind, Likeness::kReordered);
  EXPECT_EQ(like_of("copy_noise", Role::kExpertGate, 0).kind, Likeness::kNone);
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
}  // namespace coppice::verify
