#include "coppice/io/file_rules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <map>

#include "coppice/base/text.h"
#include "coppice/io/checkpoint.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using testing::expect_error;
using ::testing::IsEmpty;
using testing::TempDir;
using testing::write_tensors;
using testing::write_text;

constexpr auto kRewritten = FileDecision::kRewritten;
constexpr auto kCarried = FileDecision::kCarried;
constexpr auto kChecked = FileDecision::kChecked;
constexpr auto kLeftOut = FileDecision::kLeftOut;
constexpr auto kRefused = FileDecision::kRefused;

/// Files that published or trained models have beside their weights, row by row of the table.
const std::vector<std::pair<FileDecision, std::vector<const char*>>> kExamples = {
    {kRewritten, {"config.json", "coppice.json"}},
    {kRewritten, {"model.safetensors", "model.safetensors.index.json"}},
    {kRewritten, {"trainer/trainer.json", "trainer/optimizer-00001-of-00001.safetensors"}},
    {kRefused,
     {"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "speech-lora/adapter_model.safetensors",
      "adapters.safetensors"}},
    {kRefused, {"optimizer.pt", "optimizer.bin", "optimizer_0.pt"}},
    {kRefused,
     {"global_step100/mp_rank_00_model_states.pt", "global_step7/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
      "zero_pp_rank_0_mp_rank_00_optim_states.pt", "mp_rank_00_model_states.pt", "mp_rank_00/model_optim_rng.pt"}},
    {kRefused, {"__0_0.distcp", "dcp/__1_0.distcp", ".metadata", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/x"}},
    {kRefused, {"iter_0000100/mp_rank_00/model_optim_rng.pt", "distrib_optim.pt", "m.nemo", "model_weights/x.json"}},
    {kLeftOut,
     {"latest", "zero_to_fp32.py", "latest_checkpointed_iteration.txt", "scheduler.pt", "rng_state.pth",
      "rng_state_0.pth", "random_states_0.pkl", "trainer_state.json", "training_args.bin"}},
    {kLeftOut,
     {"checkpoint-500/model.safetensors", "checkpoint-500/optimizer.pt", "checkpoints/step-1/model.safetensors"}},
    {kLeftOut,
     {"original/model.safetensors", "original/consolidated.00.pth", "metal/model.bin", "consolidated.safetensors",
      "consolidated-00001-of-00002.safetensors", "consolidated.safetensors.index.json", "consolidated.00.pth",
      "params.json"}},
    {kLeftOut,
     {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "model.pt", "x.ckpt"}},
    {kLeftOut, {"m-q4_k_m.gguf", "m.ggml", "M-Q8_0.GGUF"}},
    {kLeftOut, {"tf_model.h5", "flax_model.msgpack", "flax_model.msgpack.index.json", "rust_model.ot"}},
    {kLeftOut, {"onnx/model.onnx", "model.onnx_data", "openvino/openvino_model.xml", "openvino_model.xml", "a.engine"}},
    {kRefused,
     {"model-00001-of-00002.safetensors", "model.fp16.safetensors", "vision.safetensors", "sub/x.safetensors",
      "other.safetensors.index.json"}},
    {kLeftOut, {"model.zip", "experts.tar", "weights.tar.gz", "m.7z", "M.ZIP"}},
    {kLeftOut, {"model.safetensors.sha256", "SHA256SUMS", "model.sig"}},
    {kChecked, {"quantize_config.json", "quant_config.json", "hf_quant_config.json"}},
    {kLeftOut, {".git/objects/1", ".cache/huggingface/download/model.safetensors.metadata"}},
    {kCarried,
     {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
      "merges.txt", "chat_template.jinja", "tekken.json"}},
    {kCarried, {"generation_config.json", "preprocessor_config.json"}},
    {kCarried, {"modeling_x.py", "code/deep/a.py"}},
    {kChecked, {"mergekit_config.yml", "1_Pooling/config.json"}},
    {kCarried, {"README.md", "LICENSE", ".gitattributes", "picture.png", "config.json.md", "latest.md"}}};

TEST(FileRules, DecideForEachKindOfFile) {
  ASSERT_EQ(kExamples.size(), file_rules().size()) << "each row of the table has its examples here, in its order";
  for (size_t row = 0; row < kExamples.size(); ++row) {
    const auto& [decision, names] = kExamples[row];
    EXPECT_EQ(file_rules()[row].decision, decision) << file_rules()[row].kind;
    for (const char* name : names) EXPECT_EQ(file_rule(name).kind, file_rules()[row].kind) << name;
  }
}

TEST(FileRules, SayWhyWhereverAFileDoesNotArrive) {
  for (const FileRule& rule : file_rules()) {
    const bool arrives = rule.decision == kRewritten || rule.decision == kCarried;
    EXPECT_TRUE(arrives || !rule.reason.empty()) << rule.kind;
    EXPECT_TRUE(rule.decision != kRefused || rule.reason.find("move") != std::string_view::npos) << rule.kind;
  }
  EXPECT_EQ(file_rules().back().patterns, "*");
}

void write_model(const fs::path& directory) {
  write_text(directory / "config.json", R"({"model_type":"olmoe"})");
  write_tensors(directory / "model.safetensors", {{"w", {1}, {1.0f}}});
}

std::vector<std::string> names_of(const std::vector<JudgedFile>& files) {
  std::vector<std::string> out;
  for (const auto& file : files) out.push_back(file.name);
  return out;
}

// Each example beside a model: it arrives, or it is named.
TEST(SortFiles, LosesNoFileWithoutAWord) {
  for (const auto& [decision, names] : kExamples) {
    if (decision == kRewritten) continue;
    for (const char* name : names) {
      SCOPED_TRACE(name);
      const TempDir dir;
      write_model(dir.path());
      write_text(dir / name, "{}");
      const auto sorted = sort_files(Checkpoint::open(dir.path()));
      EXPECT_EQ(sorted.carried.size(), decision == kCarried || decision == kChecked ? 1u : 0u);
      EXPECT_EQ(sorted.left_out.size(), decision == kLeftOut ? 1u : 0u);
      EXPECT_EQ(sorted.refused.size(), decision == kRefused ? 1u : 0u);
      for (const auto& file : sorted.left_out) EXPECT_THAT(std::string(name), ::testing::StartsWith(file.name));
      const auto carry = [&] { (void)files_to_carry(Checkpoint::open(dir.path())); };
      if (!sorted.refused.empty()) {
        expect_error(ErrorCode::kUnsupported, {sorted.refused.front().name.c_str(), "move"}, carry);
      } else {
        EXPECT_NO_THROW(carry());
      }
    }
  }
}

TEST(SortFiles, KnowsTheWeightsWhateverTheyAreCalled) {
  const TempDir dir;
  write_text(dir / "config.json", R"({"model_type":"olmoe"})");
  write_tensors(dir / "sub" / "real.safetensors", {{"a", {1}, {1.0f}}});
  write_tensors(dir / "part.safetensors", {{"b", {1}, {1.0f}}});
  fs::create_symlink("sub/real.safetensors", dir / "link.safetensors");
  write_text(dir / "model.safetensors.index.json", R"({"weight_map":{"a":"link.safetensors","b":"part.safetensors"}})");
  const auto checkpoint = Checkpoint::open(dir.path());
  EXPECT_THAT(sort_files(checkpoint).refused, IsEmpty());
  write_tensors(dir / "model-00003-of-00003.safetensors", {{"c", {1}, {1.0f}}});
  EXPECT_THAT(names_of(sort_files(checkpoint).refused), ElementsAre("model-00003-of-00003.safetensors"));
}

TEST(SortFiles, LeavesOutJsonThatCountsExperts) {
  const std::map<std::string, bool> texts = {{R"({"num_experts": 8})", true},
                                             {R"({"moe": {"n_routed_experts" : 64}})", true},
                                             {"moe_num_experts: 8\n", true},
                                             {R"({"num-experts":8})", true},
                                             {R"({"exclude_modules": ["model.layers.0.mlp.experts.3.up_proj"]})", true},
                                             {R"({"modules": ["experts[0]"]})", true},
                                             {R"({"num_experts": "8"})", true},
                                             {R"({"experts_per_layer": [8, 8]})", true},
                                             {"expert_ids:\n  - 0\n  - 1\n", true},
                                             {R"({"expert_map": {"0": 1}})", true},
                                             {R"({"ignore": ["re:.*experts\\.[0-3]\\..*"]})", true},
                                             {R"({"*experts.0*": {"bits": 8}})", true},
                                             {R"({"ignore": ["re:.*experts\\.\\d+\\..*", "shared_experts.0"]})", false},
                                             {R"({"name": "moe-4-experts-2"})", false},
                                             {R"({"num_experts": null})", false},
                                             {R"({"experts": 17})", false},  // a word of a vocabulary
                                             {R"({"Ġexperts": 1234, "experts_": 5})", false},
                                             {R"({"exclude_modules": ["lm_head", "*.mlp.experts.*"]})", false},
                                             {R"({"bits": 4, "group_size": 128})", false}};
  for (const auto& [text, is_left_out] : texts) {
    for (const char* name : {"quantize_config.json", "other.json", "sub/hparams.yaml"}) {
      SCOPED_TRACE(cat(name, " ", text));
      const TempDir dir;
      write_model(dir.path());
      write_text(dir / name, text);
      EXPECT_EQ(sort_files(Checkpoint::open(dir.path())).left_out.size(), is_left_out ? 1u : 0u);
    }
  }
  const TempDir dir;
  write_model(dir.path());
  write_text(dir / "vocab.json", R"({"num_experts": 1})");  // of a tokenizer, whatever its words
  EXPECT_THAT(sort_files(Checkpoint::open(dir.path())).carried, ElementsAre("vocab.json"));
}

TEST(SortFiles, NamesAFolderOnceAndEmptyOnesToo) {
  const TempDir dir;
  write_model(dir.path());
  write_text(dir / "original" / "a.pth", "x");
  write_text(dir / "original" / "params.json", "x");
  fs::create_directories(dir / "empty");
  EXPECT_THAT(names_of(sort_files(Checkpoint::open(dir.path())).left_out), ElementsAre("empty/", "original/"));
}

TEST(SortFiles, RejectsLinksOutLinksToDirectoriesAndPipes) {
  const TempDir dir;
  const auto model = dir / "m";
  write_model(model);
  const auto checkpoint = Checkpoint::open(model);
  const auto sort = [&] { (void)sort_files(checkpoint); };
  for (const char* name : {"tokenizer.json", "README.md", "other.json"}) {
    fs::create_symlink("/etc/passwd", model / name);
    expect_error(ErrorCode::kFormat, {name, "symbolic link"}, sort);
    fs::remove(model / name);
    ASSERT_EQ(::mkfifo((model / name).c_str(), 0600), 0);
    expect_error(ErrorCode::kFormat, {name, "named pipe"}, sort);
    fs::remove(model / name);
  }
  fs::create_directory(model / "real");
  fs::create_directory_symlink("real", model / "linked");
  expect_error(ErrorCode::kFormat, {"linked", "is a directory"}, sort);
  fs::remove(model / "linked");
  fs::create_symlink("nothing", model / "dangling");
  expect_error(ErrorCode::kFormat, {"dangling", "is a symbolic link"}, sort);
}

}  // namespace
}  // namespace coppice::io
