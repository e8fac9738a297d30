#include "coppice/grow/expand.h"

#include <set>

#include "coppice/grow/grow.h"
#include "coppice/models/expert_tensors.h"
#include "coppice/models/generate.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/text.h"
#include "tests/testing/any_family.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::grow {
namespace {

using plan::GrowthPlan;

namespace fs = std::filesystem;
using families::Role;
using testing::bytes_of;
using testing::expect_error;
using testing::files_of;
using testing::grow;
using testing::name_of;
using testing::TempDir;
using testing::tensors_of;
using testing::tiny_model;

constexpr Role kExpertMatrices[] = {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown};

class EveryFamily : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Upcycle, EveryFamily, ::testing::ValuesIn(testing::moe_families()), [](const auto& family) {
  std::string name = family.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

TEST_P(EveryFamily, ReplicasEqualTheirParentByteForByte) {
  const TempDir dir;
  const auto before = families::open_model(testing::any_model(dir / "m", GetParam()));
  const models::ExpertTensors parents(before);
  for (const char* count : {"2x", "3x", "1.5x", "5"}) {
    SCOPED_TRACE(count);
    const auto out = dir / (std::string("out") + count);
    const GrowthPlan plan = grow(dir / "m", out, {.experts = plan::ExpertCount::from_text(count)});
    const auto after = families::open_model(out);  // strict: nothing is missing
    EXPECT_EQ(after.config.num_experts, plan.experts_after);
    const models::ExpertTensors children(after);
    for (const methods::LayerPlan& layer : plan.layers) {
      for (size_t child = 0; child < layer.children.size(); ++child) {
        const auto was = parents.of(layer.layer, layer.children[child].parent);
        const auto is = children.of(layer.layer, static_cast<int64_t>(child));
        ASSERT_EQ(is.size(), was.size());
        ASSERT_FALSE(is.empty());
        for (size_t i = 0; i < is.size(); ++i) EXPECT_TRUE(std::ranges::equal(is[i].data(), was[i].data())) << child;
      }
    }
  }
}

TEST_P(EveryFamily, LeavesOtherTensorsUntouched) {
  const TempDir dir;
  const auto model = families::open_model(testing::any_model(dir / "m", GetParam()));
  grow(dir / "m", dir / "out", {.expert_init = {"copy_noise", {}}});
  const auto before = tensors_of(dir / "m"), after = tensors_of(dir / "out");
  for (const auto& slot : model.slots) {
    if (!families::is_expert(slot.role()) && !families::has_rows(slot.role())) {
      EXPECT_EQ(after.at(slot.name), before.at(slot.name)) << slot.name;
    }
  }
}

TEST_P(EveryFamily, RowsOfRoutersFollowThePlan) {
  const TempDir dir;
  const auto before = families::open_model(testing::any_model(dir / "m", GetParam()));
  const GrowthPlan plan =
      grow(dir / "m", dir / "out", {.experts = {"1.5x"}, .router_init = methods::MethodChoice{"copy", {}}});
  const auto after = families::open_model(dir / "out");
  size_t seen = 0;
  for (const auto& slot : before.slots) {
    if (!families::has_rows(slot.role()) || slot.layer >= before.config.num_layers) continue;
    const auto rows_before = before.checkpoint.read_f32(slot.name), rows_after = after.checkpoint.read_f32(slot.name);
    const size_t cols = rows_before.size() / static_cast<size_t>(before.config.router_rows());
    const auto& children = plan.layer(slot.layer).children;
    for (size_t i = 0; i < children.size() * cols; ++i)
      EXPECT_EQ(rows_after[i], rows_before[children[i / cols].parent * cols + i % cols]) << slot.name;
    const size_t trailing = static_cast<size_t>(before.config.routing.trailing_choices) * cols;
    EXPECT_TRUE(std::ranges::equal(std::span(rows_after).last(trailing), std::span(rows_before).last(trailing)));
    ++seen;
  }
  EXPECT_GT(seen, 0u);
}

TEST(Expand, GivesTheSameBytesForAnyThreadsAndSourceShards) {
  const TempDir dir;
  const char* methods[] = {"copy", "drop_units"};
  for (const char* method : methods) {
    SCOPED_TRACE(method);
    const fs::path folder = dir / method;
    fs::create_directory(folder);
    tiny_model(folder / "one", "glm4_moe", {.dtype = io::Dtype::kBf16});
    tiny_model(folder / "many", "glm4_moe", {.dtype = io::Dtype::kBf16, .max_shard_bytes = 20000});
    ASSERT_GT(families::open_model(folder / "many").checkpoint.shards().size(), 3u);
    for (const char* source : {"one", "many"}) testing::write_trainer(folder / source);
    const plan::GrowthOptions options{.experts = {"3x"}, .expert_init = {method, {}}, .seed = 5};
    grow(folder / "one", folder / "t1", options, {.threads = 1, .max_shard_bytes = 30000});
    const auto wanted = files_of(folder / "t1");
    for (const size_t threads : {2, 4}) {
      const auto out = folder / std::to_string(threads);
      grow(folder / "one", out, options, {.threads = threads, .max_shard_bytes = 30000});
      EXPECT_EQ(files_of(out), wanted);
    }
    grow(folder / "many", folder / "from_many", options, {.threads = 2, .max_shard_bytes = 30000});
    EXPECT_EQ(files_of(folder / "from_many"), wanted);
    grow(folder / "one", folder / "one_shard", options, {.threads = 2});
    EXPECT_EQ(tensors_of(folder / "one_shard"), tensors_of(folder / "t1"));
  }
}

TEST(Expand, ComputesWhatThePureFunctionsCompute) {
  const TempDir dir;
  tiny_model(dir / "m", "qwen3_moe", {.dtype = io::Dtype::kBf16});
  const GrowthPlan plan = grow(dir / "m", dir / "out", {.expert_init = {"drop_units", {}}, .seed = 3});
  const auto before = families::open_model(dir / "m"), after = families::open_model(dir / "out");
  const methods::LayerPlan& layer = plan.layers.front();
  for (const Role role : kExpertMatrices) {
    const auto grown = after.checkpoint.at(name_of(after, role, layer.layer, 5));
    const auto source = [&](uint32_t expert) {
      const auto entry = before.checkpoint.at(name_of(before, role, layer.layer, expert));
      return matrix::MatrixBytes{entry.info->dtype, entry.info->shape[0], entry.info->shape[1], entry.data()};
    };
    testing::Bytes wanted(grown.info->bytes);
    grow_expert(plan, layer.layer, layer.children[5], role, source, grown.info->dtype, wanted);
    EXPECT_EQ(bytes_of(grown), wanted);
  }
}

TEST(Expand, CarriesCompanionsAndRewritesTheExpertCount) {
  const TempDir dir;
  tiny_model(dir / "m", "qwen3_moe");
  testing::edit_json(dir / "m" / "config.json", [](Json& config) {
    config["num_experts"] = 4;
    config["num_local_experts"] = 4;
    config["x_unknown"] = Json::parse("[1e-05, NaN, \"kept\"]", "test");
  });
  fs::create_directory(dir / "m" / "extra");
  io::write_file_atomically(dir / "m" / "tokenizer.json", "{\"t\": 1}");
  io::write_file_atomically(dir / "m" / "extra" / "notes.txt", "notes");
  grow(dir / "m", dir / "out", {.experts = {"6"}});
  const auto files = files_of(dir / "out");
  EXPECT_EQ(files.at("tokenizer.json"), "{\"t\": 1}");
  EXPECT_EQ(files.at("extra/notes.txt"), "notes");
  const Json config = Json::read(dir / "out" / "config.json");
  EXPECT_EQ(config.at("num_experts").as_int(), 6);
  EXPECT_EQ(config.at("num_local_experts").as_int(), 6);
  EXPECT_EQ(config.at("x_unknown").dump(), "[1e-05, NaN, \"kept\"]");
}

TEST(Expand, AppendsToTheLineage) {
  const TempDir dir;
  tiny_model(dir / "m", "olmoe");
  grow(dir / "m", dir / "a", {.experts = {"6"}});
  Json record = Json::object();
  record["seed"] = 9;
  const GrowthPlan second = grow(dir / "a", dir / "b", {.experts = {"2x"}, .seed = 9}, {.record = record});
  const Json lineage = *plan::read_lineage(dir / "b");
  ASSERT_EQ(lineage.at("steps").items().size(), 2u);
  const Json& step = lineage.at("steps").items()[1];
  EXPECT_EQ(step.at("source_digest").as_string(), families::open_model(dir / "a").digest());
  EXPECT_EQ(step.at("experts").dump(), "[6, 12]");
  EXPECT_EQ(step.at("settings").at("seed").as_int(), 9);
  const auto parents = plan::newest_parents(lineage)->at(second.layers.front().layer);
  for (size_t i = 0; i < parents.size(); ++i) EXPECT_EQ(parents[i], second.layers.front().children[i].parent);
}

TEST(Expand, PlacesEveryTensorAligned) {
  const TempDir dir;
  tiny_model(dir / "m", "glm4_moe",
             {.sizes = {.model_dim = 6,
                        .num_heads = 1,
                        .num_kv_heads = 1,
                        .head_dim = 4,
                        .num_experts = 3,
                        .top_k = 1,
                        .expert_width = 3},
              .dtype = io::Dtype::kBf16});
  grow(dir / "m", dir / "out", {.experts = {"5"}});
  const auto grown = io::Checkpoint::open(dir / "out");
  for (const auto& shard : grown.shards()) {
    for (const auto& tensor : shard.tensors()) {
      EXPECT_EQ((shard.data_start() + tensor.offset) % (io::dtype_bits(tensor.dtype) / 8), 0u) << tensor.name;
    }
  }
}

TEST(Expand, LeavesNothingBehindWhereItCannotFinish) {
  const TempDir dir;
  tiny_model(dir / "m", "mixtral");
  const auto before = files_of(dir / "m");
  expect_error(ErrorCode::kUsage, {"exists"}, [&] {
    fs::create_directory(dir / "there");
    grow(dir / "m", dir / "there", {});
  });
  expect_error(ErrorCode::kUsage, {}, [&] { grow(dir / "m", dir / "m" / "inside", {}); });
  io::write_file_atomically(dir / "m" / io::kLineageFile, "{}");
  expect_error(ErrorCode::kFormat, {io::kLineageFile}, [&] { grow(dir / "m", dir / "out", {}); });
  fs::remove(dir / "m" / io::kLineageFile);
  EXPECT_EQ(files_of(dir / "m"), before);
  std::set<std::string> left;
  for (const auto& file : fs::directory_iterator(dir.path())) left.insert(file.path().filename());
  EXPECT_EQ(left, (std::set<std::string>{"m", "there"}));
}

TEST(ExpandBytes, ForetellsWhatIsWritten) {
  const TempDir dir;
  tiny_model(dir / "m", "glm4_moe", {.dtype = io::Dtype::kBf16});
  testing::write_trainer(dir / "m");
  const auto model = families::open_model(dir / "m");
  const GrowthPlan plan = plan::make_plan(model.config, {.experts = {"3x"}}, nullptr);
  const ExpandBytes bytes = expand_bytes(model, plan);
  const output::WrittenModel result = expand(model, plan, {.out = dir / "out"});
  EXPECT_EQ(bytes.weights_after, families::open_model(dir / "out").checkpoint.total_bytes());
  EXPECT_EQ(bytes.weights_after + bytes.optimizer_after, result.bytes_written);
  EXPECT_GT(bytes.optimizer_after, bytes.optimizer_before);
}

TEST(CopiesText, JoinsLayersAndParentsThatAreAlike) {
  GrowthPlan plan;
  plan.experts_before = 4;
  const std::vector<methods::Child> each = {{0, 0}, {1, 0}, {2, 0}, {3, 0}, {0, 1}, {1, 1}, {3, 1}};
  const std::vector<methods::Child> one = {{0, 0}, {1, 0}, {2, 0}, {3, 0}, {2, 1}, {2, 2}, {2, 3}};
  plan.layers = {{1, each}, {2, each}, {3, one}};
  EXPECT_EQ(plan::copies_text(plan), "layers 1-2: 1 copy of each of 0-1, 3\nlayer 3: 3 copies of 2\n");
}

}  // namespace
}  // namespace coppice::grow
