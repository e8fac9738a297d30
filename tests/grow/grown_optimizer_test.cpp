#include <sys/stat.h>

#include <optional>

#include "coppice/base/text.h"
#include "coppice/models/optimizer_state.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::grow {
namespace {

using methods::LayerPlan;

namespace fs = std::filesystem;
using families::Role;
using testing::bytes_of;
using testing::expect_error;
using testing::grow;
using testing::name_of;
using testing::TempDir;
using testing::tiny_model;

std::vector<float> floats(const io::Checkpoint::Entry& entry) {
  std::vector<float> values(static_cast<size_t>(entry.info->elements()));
  io::to_f32(entry.info->dtype, entry.data(), values);
  return values;
}

std::vector<int64_t> steps(const io::Checkpoint::Entry& entry) {
  std::vector<int64_t> values(static_cast<size_t>(entry.info->elements()));
  std::memcpy(values.data(), entry.data().data(), entry.data().size());
  return values;
}

/// A model with trainer/, grown; both opened.
struct Grown {
  Grown(const fs::path& dir, const plan::GrowthOptions& options, io::Dtype dtype = io::Dtype::kBf16,
        size_t shards = 2) {
    tiny_model(dir / "m", "glm4_moe", {.dtype = dtype});
    testing::write_trainer(dir / "m", shards);
    plan = grow(dir / "m", dir / "out", options, {.threads = 2});
    before.emplace(families::open_model(dir / "m"));
    after.emplace(families::open_model(dir / "out"));
    was.emplace(*models::OptimizerState::open(*before));
    is.emplace(*models::OptimizerState::open(*after));
  }
  std::string parent_name(const LayerPlan& layer, size_t child, Role role) const {
    return name_of(*before, role, layer.layer, layer.children[child].parent);
  }
  std::string child_name(const LayerPlan& layer, size_t child, Role role) const {
    return name_of(*after, role, layer.layer, static_cast<int64_t>(child));
  }

  plan::GrowthPlan plan;
  std::optional<families::Model> before, after;
  std::optional<models::OptimizerState> was, is;
};

TEST(OptimizerStateGrow, CopyGivesChildrenTheirParentsMomentsAndSteps) {
  const TempDir dir;
  const Grown grown(dir.path(), {.experts = {"1.5x"}, .optimizer_state = {"copy", {}}});
  for (const LayerPlan& layer : grown.plan.layers) {
    for (size_t child = 0; child < layer.children.size(); ++child) {
      for (const Role role : {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown}) {
        for (const char* part : {"master", "exp_avg", "exp_avg_sq", "step"}) {
          EXPECT_EQ(bytes_of(grown.is->at(grown.child_name(layer, child, role), part)),
                    bytes_of(grown.was->at(grown.parent_name(layer, child, role), part)))
              << child << " " << part;
        }
      }
    }
    const std::string router = name_of(*grown.before, Role::kRouter, layer.layer);
    const auto before = steps(grown.was->at(router, "step")), after = steps(grown.is->at(router, "step"));
    ASSERT_EQ(after.size(), layer.children.size());
    for (size_t child = 0; child < after.size(); ++child) EXPECT_EQ(after[child], before[layer.children[child].parent]);
  }
}

TEST(OptimizerStateGrow, ResetZeroesChildrenAloneAndKeepsOriginals) {
  const TempDir dir;
  const Grown grown(dir.path(), {.optimizer_state = {"reset", {}}});
  const LayerPlan& layer = grown.plan.layers.front();
  for (size_t child = 0; child < layer.children.size(); ++child) {
    const std::string name = grown.child_name(layer, child, Role::kExpertDown);
    if (layer.children[child].copy == 0) {
      const std::string parent = grown.parent_name(layer, child, Role::kExpertDown);
      EXPECT_EQ(bytes_of(grown.is->at(name, "exp_avg_sq")), bytes_of(grown.was->at(parent, "exp_avg_sq")));
      EXPECT_EQ(steps(grown.is->at(name, "step")), steps(grown.was->at(parent, "step")));
      continue;
    }
    for (const char* part : {"exp_avg", "exp_avg_sq"}) {
      for (const float x : floats(grown.is->at(name, part))) ASSERT_EQ(x, 0);
    }
    EXPECT_EQ(steps(grown.is->at(name, "step")), std::vector<int64_t>{0});
  }
  const std::string router = name_of(*grown.after, Role::kRouter, layer.layer);
  const auto router_steps = steps(grown.is->at(router, "step"));
  const auto moments = floats(grown.is->at(router, "exp_avg"));
  const size_t dim = moments.size() / router_steps.size();
  for (size_t child = 0; child < router_steps.size(); ++child) {
    EXPECT_EQ(router_steps[child] == 0, layer.children[child].copy > 0);
    EXPECT_EQ(moments[child * dim] == 0, layer.children[child].copy > 0);
  }
}

// docs/methods.md, "Optimizer state": where there is a master, the child is computed from it and the stored dtype
// rounded from the child's.
TEST(OptimizerStateGrow, RoundsStoredWeightsFromTheChildsMaster) {
  const TempDir dir;
  const Grown grown(dir.path(),
                    {.expert_init = {"copy_noise", {}}, .router_init = methods::MethodChoice{"copy_noise", {}}});
  for (const auto& slot : grown.after->slots) {
    if (!testing::is_trained(slot)) continue;
    const auto stored = grown.after->checkpoint.at(slot.name);
    testing::Bytes rounded(stored.info->bytes);
    io::from_f32(stored.info->dtype, floats(grown.is->at(slot.name, "master")), rounded);
    EXPECT_EQ(bytes_of(stored), rounded) << slot.name;
  }
}

TEST(OptimizerStateGrow, CarriesEverythingElseAsItIs) {
  const TempDir dir;
  const Grown grown(dir.path(), {});
  for (const auto& slot : grown.before->slots) {
    if (families::is_expert(slot.role()) || slot.role() == Role::kRouter || !testing::is_trained(slot)) continue;
    for (const char* part : {"master", "exp_avg", "exp_avg_sq", "step"}) {
      EXPECT_EQ(bytes_of(grown.is->at(slot.name, part)), bytes_of(grown.was->at(slot.name, part))) << slot.name;
    }
  }
  const auto files = testing::files_of(dir / "out" / io::kTrainerFolder);
  EXPECT_EQ(files.at(io::kTrainerFile), R"({"step": 7})");
  EXPECT_TRUE(files.contains("optimizer-00001-of-00001.safetensors"));
}

TEST(OptimizerStateGrow, WantsNoMasterOfF32Weights) {
  const TempDir dir;
  const Grown grown(dir.path(), {.expert_init = {"drop_units", {}}}, io::Dtype::kF32, 1);
  EXPECT_FALSE(grown.is->has_master(name_of(*grown.after, Role::kRouter, grown.plan.layers.front().layer)));
}

class Refuses : public ::testing::Test {
 protected:
  Refuses() {
    tiny_model(dir_ / "m", "glm4_moe");
    testing::write_trainer(dir_ / "m", 1);
  }
  fs::path trainer() const { return dir_ / "m" / io::kTrainerFolder; }
  void expect(ErrorCode code, std::initializer_list<const char*> parts) const {
    expect_error(code, parts, [&] { grow(dir_ / "m", dir_ / "out", {}); });
    EXPECT_FALSE(fs::exists(dir_ / "out"));
  }
  TempDir dir_;
};

TEST_F(Refuses, StatePickledByTorch) {
  io::write_file_atomically(trainer() / "optimizer.pt", "x");
  expect(ErrorCode::kUnsupported, {"optimizer.pt", "move it away"});
}

TEST_F(Refuses, AnIncompleteSetOfShards) {
  fs::rename(trainer() / "optimizer-00001-of-00001.safetensors", trainer() / "optimizer-00001-of-00002.safetensors");
  expect(ErrorCode::kFormat, {"optimizer-00001-of-00002.safetensors", "complete set"});
}

TEST_F(Refuses, AFolderWithoutTrainerJson) {
  fs::remove(trainer() / io::kTrainerFile);
  expect(ErrorCode::kFormat, {"trainer.json"});
}

// What lies in trainer/ ends up in the expanded model's: no way leads from there to another file of the user.
TEST_F(Refuses, FilesThatLeadOutOrAreNone) {
  io::write_file_atomically(dir_ / "secret", "{}");
  const std::string shard = "optimizer-00001-of-00001.safetensors";
  for (const std::string& name : {std::string(io::kTrainerFile), shard}) {
    for (const std::string kind : {"a symbolic link", "a named pipe", "a directory"}) {
      SCOPED_TRACE(cat(name, " is ", kind));
      const fs::path file = trainer() / name, kept = dir_ / "kept";
      fs::rename(file, kept);
      if (kind == "a symbolic link") {
        fs::create_symlink(dir_ / "secret", file);
      } else if (kind == "a directory") {
        fs::create_directory(file);
      } else {
        ASSERT_EQ(::mkfifo(file.c_str(), 0600), 0);
      }
      const auto model = families::open_model(dir_ / "m");
      const auto plan = plan::make_plan(model.config, {}, nullptr);
      testing::expect_error(ErrorCode::kFormat, {name.c_str(), kind.c_str()},
                            [&] { (void)expand(model, plan, {.out = dir_ / "out"}); });
      EXPECT_FALSE(fs::exists(dir_ / "out"));
      fs::remove(file);
      fs::rename(kept, file);
    }
  }
}

TEST_F(Refuses, AFileItDoesNotKnow) {
  io::write_file_atomically(trainer() / "scheduler.bin", "x");
  expect(ErrorCode::kFormat, {"scheduler.bin"});
}

TEST_F(Refuses, MissingAndExtraKeysAllAtOnce) {
  const auto file = trainer() / "optimizer-00001-of-00001.safetensors";
  std::string bytes = read_file(file);
  for (const auto& [from, to] : {std::pair("model.norm.weight.exp_avg\"", "model.nurm.weight.exp_avg\""),
                                 std::pair("model.norm.weight.step\"", "model.norm.weight.stup\"")}) {
    const size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos);
    bytes.replace(at, std::string_view(from).size(), to);
  }
  io::write_file_atomically(file, bytes);
  expect(ErrorCode::kFormat, {"missing: model.norm.weight.exp_avg, model.norm.weight.step",
                              "not in the model: model.norm.weight.stup, model.nurm.weight.exp_avg"});
}

TEST_F(Refuses, AnotherDtype) {
  const auto file = trainer() / "optimizer-00001-of-00001.safetensors";
  std::string bytes = read_file(file);
  const size_t at = bytes.find("\"I64\"", bytes.find("model.norm.weight.step"));
  bytes.replace(at, 5, "\"F64\"");
  io::write_file_atomically(file, bytes);
  expect(ErrorCode::kShape, {"'model.norm.weight.step' is F64 [1], wanted I64 [1]"});
}

}  // namespace
}  // namespace coppice::grow
