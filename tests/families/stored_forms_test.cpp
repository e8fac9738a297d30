// The forms in which one model may be stored: packed experts, tensors stored twice, quantised weights, either
// orientation.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coppice/base/text.h"
#include "coppice/families/packed_layout.h"
#include "coppice/models/expert_tensors.h"
#include "coppice/models/generate.h"
#include "tests/testing/errors.h"
#include "tests/testing/hand_made_models.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/tiny_models.h"

namespace coppice::families {
namespace {

using testing::expect_error;
using testing::f32_tensor;
using testing::HandMadeTensor;
using testing::raw_tensor;
using testing::surgery_config;
using testing::TempDir;
using testing::tiny_model;
using testing::write_model;

/// The tensors of a checkpoint, each with its bytes.
std::vector<HandMadeTensor> tensors_of(const std::filesystem::path& directory) {
  const io::Checkpoint checkpoint = io::Checkpoint::open(directory);
  std::vector<HandMadeTensor> tensors;
  for (const std::string& name : checkpoint.names()) {
    const auto entry = checkpoint.at(name);
    const auto bytes = entry.data();
    tensors.push_back({*entry.info, {bytes.begin(), bytes.end()}});
  }
  return tensors;
}

/// The same model in its second layout: random weights of those shapes.
std::filesystem::path packed_model(const std::filesystem::path& directory, std::string_view family,
                                   const models::ModelSizes& sizes = {}) {
  models::ModelSizes all = sizes;
  all.family = family;
  const Json json = models::make_config(all, io::Dtype::kF32);
  ModelConfig config = read_config(json, "test");
  config.family = packed_layout(*config.family);
  std::vector<HandMadeTensor> tensors;
  uint64_t number = 0;
  for (const TensorSlot& slot : expected_tensors(config))
    tensors.push_back(f32_tensor(slot.name, slot.shape, ++number));
  return write_model(directory, json, tensors);
}

TEST(OpenPackedModel, ReadsWhatTransformersHasInMemory) {
  const TempDir dir;
  for (const char* family : {"qwen3_moe", "mixtral", "minimax_m2", "granitemoe", "olmoe", "glm4_moe"}) {
    SCOPED_TRACE(family);
    const Model packed = open_model(packed_model(dir / family, family));
    EXPECT_EQ(count_parameters(packed.config).total, count_parameters(packed).total);
    EXPECT_EQ(packed.config.family->model_type, family);
    const models::ExpertTensors parts(packed);
    ASSERT_EQ(parts.of(1, 3).size(), 2u);
    EXPECT_EQ(parts.of(1, 3)[0].slot->role(), Role::kExpertGateUp);
  }
  EXPECT_EQ(packed_layout(family_of("llama")), nullptr);
  EXPECT_EQ(packed_layout(family_of("gpt_oss")), nullptr);
}

TEST(OpenPackedModel, TellsLayoutsApartWhereShapesDoNot) {  // model dimension = width = experts
  const TempDir dir;
  const models::ModelSizes square{.model_dim = 32, .num_heads = 2, .num_experts = 32, .top_k = 2, .expert_width = 32};
  EXPECT_EQ(open_model(packed_model(dir / "packed", "qwen3_moe", square)).config.family,
            packed_layout(family_of("qwen3_moe")));
  const Model plain = open_model(tiny_model(dir / "plain", "qwen3_moe", {.sizes = square}));
  EXPECT_EQ(plain.config.family, &family_of("qwen3_moe"));
}

TEST(OpenPackedModel, RefusesAMixtureOfLayouts) {
  const TempDir dir;
  auto tensors = tensors_of(packed_model(dir / "m", "qwen3_moe"));
  std::erase_if(tensors, [](const auto& t) { return t.info.name.starts_with("model.layers.1.mlp.experts."); });
  for (const auto& tensor : tensors_of(tiny_model(dir / "plain", "qwen3_moe"))) {
    if (tensor.info.name.starts_with("model.layers.1.mlp.experts.")) tensors.push_back(tensor);
  }
  const Json config = Json::read(dir / "m" / "config.json");
  expect_error(ErrorCode::kFormat,
               {"missing: model.layers.0.mlp.experts.0.gate_proj.weight", "unknown: model.layers.0.mlp.experts."},
               [&] { (void)open_model(write_model(dir / "mixed", config, tensors)); });
}

// Stacked either way round: the matrices that can tell, tell of all.
TEST(OpenStackedModel, TellsTheOrientationFromAllMatrices) {
  const TempDir dir;
  const auto model = [&](const char* name, std::vector<int64_t> gate_up, std::vector<int64_t> down) {
    Json config = surgery_config("qwen3_vl_moe_text", "num_experts", 4);
    return write_model(dir / name, config,
                       {f32_tensor("model.layers.0.mlp.gate.weight", {4, 8}, 1),
                        f32_tensor("model.layers.0.mlp.experts.gate_up_proj", std::move(gate_up), 2),
                        f32_tensor("model.layers.0.mlp.experts.down_proj", std::move(down), 3)});
  };
  const auto is_transposed = [](const Model& m) {
    std::vector<bool> all;
    for (const TensorSlot& slot : m.slots) {
      if (is_expert(slot.role())) all.push_back(slot.rule->layout.transposed);
    }
    return all;
  };
  const auto both = [](bool value) { return std::vector<bool>{value, value}; };
  // width 4, so that gate and up together are square
  EXPECT_EQ(is_transposed(open_model(model("a", {4, 8, 8}, {4, 4, 8}))), both(true));
  EXPECT_EQ(is_transposed(open_model(model("b", {4, 8, 8}, {4, 8, 4}))), both(false));
  // width 8, so that down is square
  EXPECT_EQ(is_transposed(open_model(model("c", {4, 8, 16}, {4, 8, 8}))), both(true));
  EXPECT_EQ(is_transposed(open_model(model("d", {4, 16, 8}, {4, 8, 8}))), both(false));
  expect_error(ErrorCode::kFormat, {"down_proj", "gate_up_proj", "both [in, out] or both [out, in]"},
               [&] { (void)open_model(model("e", {4, 8, 6}, {4, 8, 3})); });
}

// Tensors stored twice.

TEST(OpenTiedModel, TakesTheEmbeddingsStoredOnceMore) {
  const TempDir dir;
  for (const char* family : {"qwen3", "qwen3_moe"}) {
    SCOPED_TRACE(family);
    const auto path = tiny_model(dir / family, family, {.sizes = {.tied = true}});
    const auto total = count_parameters(open_model(path)).total;
    auto tensors = tensors_of(path);
    const auto embeddings =
        *std::ranges::find(tensors, "model.embed_tokens.weight", [](const auto& t) { return t.info.name; });
    HandMadeTensor head = embeddings;
    head.info.name = "lm_head.weight";
    tensors.push_back(head);
    const Json config = Json::read(path / "config.json");
    const Model model = open_model(write_model(dir / cat(family, "2"), config, tensors));
    EXPECT_EQ(model.slots.back().role(), Role::kTiedCopy);
    EXPECT_EQ(count_parameters(model).total, total);
    EXPECT_TRUE(model.config.unsupported_in_nn.empty());

    tensors.back().bytes[5] ^= std::byte{1};  // transformers 5 then does not tie
    const Model other = open_model(write_model(dir / cat(family, "3"), config, tensors));
    EXPECT_EQ(count_parameters(other).total, total + model.config.vocab_size * model.config.model_dim);
    ASSERT_EQ(other.config.unsupported_in_nn.size(), 1u);
    EXPECT_THAT(other.config.unsupported_in_nn.front(), ::testing::HasSubstr("tie_word_embeddings"));
  }
}

// Quantised weights.

struct Quantised {
  const char* name;
  const char* config;
  std::vector<std::pair<const char*, io::Dtype>> of_expert;  // beside each matrix's module
  const char* text;
};

std::vector<Quantised> quantised_formats() {
  using enum io::Dtype;
  return {{"gptq",
           R"({"quant_method": "gptq", "bits": 4})",
           {{".qweight", kI32}, {".qzeros", kI32}, {".scales", kF16}, {".g_idx", kI32}},
           "gptq int4"},
          {"packed",
           R"({"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0":
              {"weights": {"num_bits": 4, "type": "int"}}}})",
           {{".weight_packed", kI32}, {".weight_scale", kBf16}, {".weight_shape", kI32}},
           "compressed-tensors int4 (pack-quantized)"},
          {"nvfp4",
           R"({"quant_method": "modelopt", "quant_algo": "NVFP4"})",
           {{".weight", kU8}, {".weight_scale", kF8E4M3}, {".weight_scale_2", kF32}, {".input_scale", kF32}},
           "modelopt NVFP4"},
          {"bnb",
           R"({"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4"})",
           {{".weight", kU8}, {".weight.absmax", kU8}, {".weight.quant_state.bitsandbytes__nf4", kU8}},
           "bitsandbytes nf4"}};
}

std::vector<HandMadeTensor> quantised_tensors(const std::filesystem::path& plain, const Quantised& format) {
  std::vector<HandMadeTensor> out;
  uint64_t number = 0;
  for (const HandMadeTensor& tensor : tensors_of(plain)) {
    const std::string& name = tensor.info.name;
    if (name.find(".experts.") == std::string::npos) {
      out.push_back(tensor);
      continue;
    }
    for (const auto& [suffix, dtype] : format.of_expert)
      out.push_back(raw_tensor(name.substr(0, name.rfind('.')) + suffix, dtype, {2, 4}, ++number));
  }
  return out;
}

TEST(OpenQuantisedModel, TakesWhateverGoesWithAnExpert) {
  const TempDir dir;
  const auto plain = tiny_model(dir / "plain", "qwen3_moe");
  for (const Quantised& format : quantised_formats()) {
    SCOPED_TRACE(format.name);
    Json config = Json::read(plain / "config.json");
    config["quantization_config"] = Json::parse(format.config, "test");
    const auto tensors = quantised_tensors(plain, format);
    const Model model = open_model(write_model(dir / format.name, config, tensors));
    EXPECT_EQ(model.config.quantisation, format.text);
    EXPECT_EQ(model.slots.size(), tensors.size());
    EXPECT_THAT(model.config.unsupported_in_nn, ::testing::Contains(::testing::HasSubstr(format.text)));

    auto gone = tensors;  // one expert's last companion
    std::erase_if(gone, [&](const auto& t) {
      return t.info.name == cat("model.layers.0.mlp.experts.1.up_proj", format.of_expert.back().first);
    });
    expect_error(ErrorCode::kFormat, {"quantised with", format.text, "1 missing: model.layers.0.mlp.experts.1.up_proj"},
                 [&] { (void)open_model(write_model(dir / cat(format.name, "-gone"), config, gone)); });
  }
}

TEST(OpenQuantisedModel, IsRecognisedWithoutAWordInTheConfiguration) {
  const TempDir dir;
  const auto plain = tiny_model(dir / "plain", "qwen3_moe");
  const auto tensors = quantised_tensors(plain, quantised_formats().front());
  expect_error(ErrorCode::kFormat, {"look like quantised weights", "no quantization_config"},
               [&] { (void)open_model(write_model(dir / "m", Json::read(plain / "config.json"), tensors)); });
}

}  // namespace
}  // namespace coppice::families
