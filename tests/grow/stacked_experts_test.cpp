// The same experts in other layouts must grow into the same experts.

#include <gtest/gtest.h>

#include <algorithm>

#include "coppice/base/text.h"
#include "coppice/methods/expert_init.h"
#include "coppice/models/expert_tensors.h"
#include "coppice/models/generate.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/undo.h"
#include "coppice/verify/verify.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/errors.h"
#include "tests/testing/hand_made_models.h"
#include "tests/testing/temp_dir.h"

namespace coppice::grow {
namespace {

using methods::MethodChoice;
using verify::VerifyResult;

namespace fs = std::filesystem;
using families::Role;
using models::ExpertMatrix;
using testing::expect_error;
using testing::f32_tensor;
using testing::grow;
using testing::HandMadeTensor;
using testing::some_values;
using testing::surgery_config;
using testing::TempDir;
using testing::write_model;

constexpr int64_t kExperts = 3, kModel = 8, kWidth = 6;

int64_t rows_of(Role role) { return role == Role::kExpertDown ? kModel : kWidth; }
int64_t cols_of(Role role) { return role == Role::kExpertDown ? kWidth : kModel; }

/// What the expert's matrix holds, [out, in].
std::vector<float> logical(Role role, int64_t expert) {
  return some_values(static_cast<size_t>(kModel * kWidth),
                     static_cast<uint64_t>(100 * expert) + static_cast<uint64_t>(role));
}

/// Puts every expert's matrix into a stacked tensor at the place that `index` gives (expert, row, col).
template <class Index>
void lay(std::vector<float>& tensor, Role role, const Index& index) {
  for (int64_t e = 0; e < kExperts; ++e) {
    const auto values = logical(role, e);
    for (int64_t r = 0; r < rows_of(role); ++r) {
      for (int64_t c = 0; c < cols_of(role); ++c)
        tensor.at(static_cast<size_t>(index(e, r, c))) = values[static_cast<size_t>(r * cols_of(role) + c)];
    }
  }
}

std::vector<float> zeros(int64_t count) { return std::vector<float>(static_cast<size_t>(count)); }
constexpr int64_t kMatrix = kModel * kWidth;

using Tensors = std::vector<HandMadeTensor>;

Tensors own_tensors() {  // mixtral's names in minimax
  Tensors out = {f32_tensor("model.layers.0.block_sparse_moe.gate.weight", {kExperts, kModel}, 1)};
  for (int64_t e = 0; e < kExperts; ++e) {
    const std::string name = cat("model.layers.0.block_sparse_moe.experts.", e, ".");
    out.push_back(f32_tensor(name + "w1.weight", {kWidth, kModel}, logical(Role::kExpertGate, e)));
    out.push_back(f32_tensor(name + "w3.weight", {kWidth, kModel}, logical(Role::kExpertUp, e)));
    out.push_back(f32_tensor(name + "w2.weight", {kModel, kWidth}, logical(Role::kExpertDown, e)));
  }
  return out;
}

Tensors granite() {  // [E, 2I, H], [E, H, I]
  auto fused = zeros(kExperts * 2 * kMatrix), down = zeros(kExperts * kMatrix);
  lay(fused, Role::kExpertGate, [](auto e, auto r, auto c) { return (e * 2 * kWidth + r) * kModel + c; });
  lay(fused, Role::kExpertUp, [](auto e, auto r, auto c) { return (e * 2 * kWidth + kWidth + r) * kModel + c; });
  lay(down, Role::kExpertDown, [](auto e, auto r, auto c) { return (e * kModel + r) * kWidth + c; });
  const std::string name = "model.layers.0.block_sparse_moe.";
  return {f32_tensor(name + "router.layer.weight", {kExperts, kModel}, 1),
          f32_tensor(name + "input_linear.weight", {kExperts, 2 * kWidth, kModel}, fused),
          f32_tensor(name + "output_linear.weight", {kExperts, kModel, kWidth}, down)};
}

Tensors llama4() {  // [E, H, 2I], [E, I, H]
  auto fused = zeros(kExperts * 2 * kMatrix), down = zeros(kExperts * kMatrix);
  lay(fused, Role::kExpertGate, [](auto e, auto r, auto c) { return (e * kModel + c) * 2 * kWidth + r; });
  lay(fused, Role::kExpertUp, [](auto e, auto r, auto c) { return (e * kModel + c) * 2 * kWidth + kWidth + r; });
  lay(down, Role::kExpertDown, [](auto e, auto r, auto c) { return (e * kWidth + c) * kModel + r; });
  const std::string name = "model.layers.0.feed_forward.";
  return {f32_tensor(name + "router.weight", {kExperts, kModel}, 1),
          f32_tensor(name + "experts.gate_up_proj", {kExperts, kModel, 2 * kWidth}, fused),
          f32_tensor(name + "experts.down_proj", {kExperts, kWidth, kModel}, down)};
}

Tensors gpt_oss() {  // [E, H, 2I] alternating, [E, I, H]
  auto fused = zeros(kExperts * 2 * kMatrix), down = zeros(kExperts * kMatrix);
  lay(fused, Role::kExpertGate, [](auto e, auto r, auto c) { return (e * kModel + c) * 2 * kWidth + 2 * r; });
  lay(fused, Role::kExpertUp, [](auto e, auto r, auto c) { return (e * kModel + c) * 2 * kWidth + 2 * r + 1; });
  lay(down, Role::kExpertDown, [](auto e, auto r, auto c) { return (e * kWidth + c) * kModel + r; });
  const std::string name = "model.layers.0.mlp.";
  return {f32_tensor(name + "router.weight", {kExperts, kModel}, 1),
          f32_tensor(name + "router.bias", {kExperts}, 2),
          f32_tensor(name + "experts.gate_up_proj", {kExperts, kModel, 2 * kWidth}, fused),
          f32_tensor(name + "experts.gate_up_proj_bias", {kExperts, 2 * kWidth}, 3),
          f32_tensor(name + "experts.down_proj", {kExperts, kWidth, kModel}, down),
          f32_tensor(name + "experts.down_proj_bias", {kExperts, kModel}, 4)};
}

Json gpt_oss_config() {
  return models::make_config({.family = "gpt_oss",
                              .model_dim = kModel,
                              .num_layers = 1,
                              .num_heads = 2,
                              .head_dim = 4,
                              .num_experts = kExperts,
                              .expert_width = kWidth},
                             io::Dtype::kF32);
}

/// With whatever else a model of that configuration has.
Tensors completed(Tensors tensors, const Json& config) {
  for (const auto& slot : families::expected_tensors(families::read_config(config, "test"))) {
    const auto has_name = [&slot](const HandMadeTensor& tensor) { return tensor.info.name == slot.name; };
    if (std::ranges::none_of(tensors, has_name))
      tensors.push_back(f32_tensor(slot.name, slot.shape, 1000 + tensors.size()));
  }
  return tensors;
}

Tensors whole_gpt_oss() { return completed(gpt_oss(), gpt_oss_config()); }

Tensors dbrx() {  // [E * I, H], down transposed
  auto gate = zeros(kExperts * kMatrix), up = gate, down = gate;
  lay(gate, Role::kExpertGate, [](auto e, auto r, auto c) { return (e * kWidth + r) * kModel + c; });
  lay(up, Role::kExpertUp, [](auto e, auto r, auto c) { return (e * kWidth + r) * kModel + c; });
  lay(down, Role::kExpertDown, [](auto e, auto r, auto c) { return (e * kWidth + c) * kModel + r; });
  const std::string name = "transformer.blocks.0.ffn.";
  return {f32_tensor(name + "router.layer.weight", {kExperts, kModel}, 1),
          f32_tensor(name + "experts.mlp.w1", {kExperts * kWidth, kModel}, gate),
          f32_tensor(name + "experts.mlp.v1", {kExperts * kWidth, kModel}, up),
          f32_tensor(name + "experts.mlp.w2", {kExperts * kWidth, kModel}, down)};
}

Json dbrx_config() {
  return Json::parse(cat(R"({"model_type": "dbrx", "n_layers": 1, "d_model": )", kModel,
                         R"(, "ffn_config": {"moe_top_k": 2, "moe_num_experts": )", kExperts, "}}"),
                     "test");
}

struct Layout {
  const char* name;
  Tensors (*tensors)();
  Json config;
};

std::vector<Layout> layouts() {
  return {{"own", own_tensors, surgery_config("minimax", "num_local_experts", kExperts)},
          {"granite", granite, surgery_config("granitemoehybrid", "num_local_experts", kExperts)},
          {"llama4", llama4, surgery_config("llama4_text", "num_local_experts", kExperts)},
          {"gpt_oss", whole_gpt_oss, gpt_oss_config()},
          {"dbrx", dbrx, dbrx_config()}};
}

/// The expert's three matrices, [out, in], from whatever tensors hold them.
std::map<Role, testing::Bytes> matrices(const fs::path& path, int64_t expert) {
  const auto model = families::open_model(path);
  std::map<Role, testing::Bytes> out;
  for (const auto& part : models::ExpertTensors(model).of(0, expert)) {
    for (const ExpertMatrix& place : models::expert_matrices(*part.slot, model.config.num_experts)) {
      if (families::is_bias(place.role)) continue;
      testing::Bytes& matrix = out[place.role];
      matrix.resize(static_cast<size_t>(place.rows * place.cols) * sizeof(float));
      models::gather(place, sizeof(float), part.data(), matrix);
    }
  }
  return out;
}

class StackedExperts : public ::testing::TestWithParam<std::string> {};

TEST_P(StackedExperts, GrowIntoWhatExpertsInTensorsOfTheirOwnDo) {
  const TempDir dir;
  const plan::GrowthOptions options{
      .experts = {"7"}, .expert_init = {GetParam(), {}}, .router_init = MethodChoice{"copy", {}}, .seed = 11};
  for (const Layout& layout : layouts()) {
    SCOPED_TRACE(layout.name);
    const fs::path from = write_model(dir / layout.name, layout.config, layout.tensors());
    const fs::path to = dir / cat(layout.name, "-grown");
    const plan::GrowthPlan plan = grow(from, to, options);
    for (int64_t expert = 0; expert < plan.experts_after; ++expert) {
      const auto found = matrices(to, expert);
      EXPECT_EQ(found.size(), 3u);
      EXPECT_EQ(found, matrices(dir / "own-grown", expert)) << "expert " << expert;
      if (expert >= kExperts) continue;
      EXPECT_EQ(found, matrices(from, expert)) << "original " << expert;
    }
    const VerifyResult result = verify::verify(families::open_model(from), families::open_model(to), 2);
    EXPECT_TRUE(result.ok) << join(result.problems, "\n");
  }
}

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const methods::ExpertInit& method : methods::expert_inits()) names.emplace_back(method.name);
  return names;
}
INSTANTIATE_TEST_SUITE_P(EveryMethod, StackedExperts, ::testing::ValuesIn(method_names()),
                         [](const auto& method) { return method.param; });

TEST(StackedExpertsWritten, AreTheSameForAnyNumberOfThreads) {
  const TempDir dir;
  const fs::path from = write_model(dir / "m", gpt_oss_config(), whole_gpt_oss());
  const plan::GrowthOptions options{.experts = {"2x"}, .expert_init = {"copy_noise", {}}, .seed = 3};
  grow(from, dir / "one", options, {.threads = 1});
  grow(from, dir / "three", options, {.threads = 3});
  EXPECT_EQ(testing::files_of(dir / "one"), testing::files_of(dir / "three"));
}

// mxfp4 as gpt_oss is released: blocks and scales in the place of the weights.
TEST(QuantisedExperts, AreCopiedWithTheirScalesAndNeverComputedOn) {
  const TempDir dir;
  Tensors tensors = gpt_oss();
  std::erase_if(tensors, [](const auto& t) { return t.info.name.ends_with("_proj"); });
  const std::string name = "model.layers.0.mlp.experts.";
  using testing::raw_tensor;
  tensors.push_back(raw_tensor(name + "gate_up_proj_blocks", io::Dtype::kU8, {kExperts, 12, 1, 16}, 1));
  tensors.push_back(raw_tensor(name + "gate_up_proj_scales", io::Dtype::kU8, {kExperts, 12, 1}, 2));
  tensors.push_back(raw_tensor(name + "down_proj_blocks", io::Dtype::kU8, {kExperts, 8, 1, 16}, 3));
  tensors.push_back(raw_tensor(name + "down_proj_scales", io::Dtype::kU8, {kExperts, 8, 1}, 4));
  Json config = gpt_oss_config();
  config["quantization_config"] = Json::object({{"quant_method", "mxfp4"}});
  const fs::path from = write_model(dir / "m", config, tensors);
  const plan::GrowthPlan plan = grow(from, dir / "out", {.experts = {"5"}, .router_init = MethodChoice{"copy", {}}});
  const auto before = testing::tensors_of(from), after = testing::tensors_of(dir / "out");
  for (const char* part : {"gate_up_proj_blocks", "gate_up_proj_scales", "down_proj_blocks", "down_proj_bias"}) {
    const auto& was = before.at(name + part);
    const auto& is = after.at(name + part);
    const size_t each = was.size() / kExperts;
    ASSERT_EQ(is.size(), each * 5);
    for (size_t child = 0; child < 5; ++child) {
      const size_t parent = plan.layers.front().children[child].parent;
      EXPECT_TRUE(std::equal(is.begin() + static_cast<std::ptrdiff_t>(child * each),
                             is.begin() + static_cast<std::ptrdiff_t>((child + 1) * each),
                             was.begin() + static_cast<std::ptrdiff_t>(parent * each)))
          << part << " " << child;
    }
  }
  const VerifyResult result = verify::verify(families::open_model(from), families::open_model(dir / "out"), 2);
  EXPECT_TRUE(result.ok) << join(result.problems, "\n");
  expect_error(ErrorCode::kUnsupported, {"_blocks", "U8", "'copy_noise' changes values"},
               [&] { grow(from, dir / "noise", {.expert_init = {"copy_noise", {}}}); });
}

TEST(TrailingChoices, StayBehindTheExperts) {
  const TempDir dir;
  Json config = surgery_config("longcat_flash", "n_routed_experts", 2, "moe_topk");
  config["num_layers"] = 1;
  config["zero_expert_num"] = 2;
  const std::string name = "model.layers.0.mlp.";
  Tensors tensors = {f32_tensor(name + "router.classifier.weight", {4, 8}, 1),
                     f32_tensor(name + "router.e_score_correction_bias", {4}, 2)};
  for (int e = 0; e < 4; ++e) {  // transformers saves gate and up for what is not an expert too
    const auto number = static_cast<uint64_t>(10 * e + 10);
    tensors.push_back(f32_tensor(cat(name, "experts.", e, ".gate_proj.weight"), {4, 8}, number));
    tensors.push_back(f32_tensor(cat(name, "experts.", e, ".up_proj.weight"), {4, 8}, number + 1));
    if (e < 2) tensors.push_back(f32_tensor(cat(name, "experts.", e, ".down_proj.weight"), {8, 4}, number + 2));
  }
  const fs::path from = write_model(dir / "m", config, tensors);
  grow(from, dir / "out", {.experts = {"5"}, .router_init = MethodChoice{"copy_noise", {}}, .seed = 1});
  const auto before = testing::tensors_of(from), after = testing::tensors_of(dir / "out");
  EXPECT_EQ(after.at(name + "experts.5.up_proj.weight"), before.at(name + "experts.2.up_proj.weight"));
  EXPECT_EQ(after.at(name + "experts.6.gate_proj.weight"), before.at(name + "experts.3.gate_proj.weight"));
  EXPECT_EQ(after.at(name + "experts.2.up_proj.weight"), before.at(name + "experts.0.up_proj.weight"));
  const auto& was = before.at(name + "router.classifier.weight");
  const auto& is = after.at(name + "router.classifier.weight");
  EXPECT_TRUE(std::equal(was.end() - 64, was.end(), is.end() - 64));
  const VerifyResult result = verify::verify(families::open_model(from), families::open_model(dir / "out"), 2);
  EXPECT_TRUE(result.ok) << join(result.problems, "\n");
}

// Multi-token prediction has experts of its own, behind the last layer.
TEST(LayersPastTheLast, GrowAsTheLastDoes) {
  const TempDir dir;
  testing::tiny_model(dir / "m", "glm4_moe");
  const auto model = families::open_model(dir / "m");
  Tensors tensors;
  for (const auto& slot : model.slots) {
    const auto entry = model.checkpoint.at(slot.name);
    tensors.push_back({{.name = slot.name, .dtype = entry.info->dtype, .shape = slot.shape}, testing::bytes_of(entry)});
    if (slot.layer != 1) continue;
    std::string name = slot.name;
    name.replace(name.find(".1."), 3, ".2.");
    tensors.push_back({{.name = name, .dtype = entry.info->dtype, .shape = slot.shape}, testing::bytes_of(entry)});
  }
  tensors.push_back(f32_tensor("model.layers.2.eh_proj.weight", {4, 8}, 1));
  const fs::path from = write_model(dir / "mtp", model.config.json, tensors);
  grow(from, dir / "out", {.experts = {"2x"}, .router_init = MethodChoice{"copy", {}}});
  const auto before = families::open_model(from), after = families::open_model(dir / "out");
  EXPECT_EQ(after.layers_with_experts, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(testing::bytes_of(after.checkpoint.at("model.layers.2.mlp.experts.6.up_proj.weight")),
            testing::bytes_of(before.checkpoint.at("model.layers.2.mlp.experts.2.up_proj.weight")));
  const VerifyResult result = verify::verify(before, after, 2);
  EXPECT_TRUE(result.ok) << join(result.problems, "\n");
  EXPECT_EQ(result.parents.at(2), result.parents.at(1));
  (void)expand(after, plan::undo_plan(after.config, plan::read_lineage(dir / "out")), {.out = dir / "back"});
  EXPECT_EQ(testing::tensors_of(dir / "back"), testing::tensors_of(from));
  EXPECT_TRUE(verify::verify(after, families::open_model(dir / "back"), 2).ok);
  EXPECT_EQ(families::count_parameters(before).total, families::count_parameters(model).total);
}

}  // namespace
}  // namespace coppice::grow
