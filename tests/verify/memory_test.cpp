// Peak memory of surgery: it grows neither with the bytes of tensors nor, by much, with their number.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "coppice/grow/expand.h"
#include "coppice/io/atomic_file.h"
#include "coppice/models/generate.h"
#include "coppice/verify/verify.h"
#include "tests/testing/checkpoints.h"
#include "tests/testing/temp_dir.h"

namespace coppice::verify {
namespace {

namespace fs = std::filesystem;
using testing::grow;
using testing::TempDir;

constexpr uint64_t kMiB = uint64_t{1} << 20;

/// Writes a model with all weights alike, without computing any.
void write_model(const fs::path& directory, const models::ModelSizes& sizes) {
  const Json json = models::make_config(sizes, io::Dtype::kBf16);
  fs::create_directory(directory);
  io::write_file_atomically(directory / "config.json", json.dump(2));
  std::vector<io::TensorInfo> infos;
  for (const auto& slot : families::expected_tensors(families::read_config(json, "config.json"))) {
    infos.push_back(output::tensor_info(slot.name, io::Dtype::kBf16, slot.shape));
  }
  io::SafetensorsWriter writer(directory / "model.safetensors", infos);
  const std::vector<std::byte> piece(kMiB, std::byte{0x3c});
  for (const auto& info : writer.tensors()) {
    for (uint64_t done = 0; done < info.bytes; done += piece.size()) {
      writer.write(info, done, std::span(piece).first(std::min<uint64_t>(piece.size(), info.bytes - done)));
    }
  }
  writer.finish();
}

/// Peak resident memory of `act` in a process of its own, its mapped files included.
uint64_t peak_bytes_of(const std::function<void()>& act) {
  const pid_t child = fork();
  if (child == 0) {
    try {
      act();
      _exit(0);
    } catch (...) {
      _exit(1);
    }
  }
  int status = -1;
  rusage usage{};
  EXPECT_EQ(wait4(child, &status, 0, &usage), child);
  EXPECT_EQ(status, 0);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

class UpcycleMemory : public ::testing::Test {
 protected:
  void SetUp() override {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "a sanitizer keeps freed memory";
#endif
  }

  TempDir dir_;
};

TEST_F(UpcycleMemory, PeakDoesNotGrowWithTheBytesOfTensors) {
  const auto make = [&](const std::string& name, int64_t megabytes) {
    const int64_t layers = 4, experts = 8, dim = 512;
    write_model(dir_ / name, {.family = "mixtral",
                              .model_dim = dim,
                              .num_layers = layers,
                              .num_experts = experts,
                              .expert_width = megabytes * (1 << 20) / (layers * experts * 3 * dim * 2)});
  };
  make("24", 24);
  make("96", 96);
  const auto peak = [&](const std::string& model) {
    return peak_bytes_of(
        [&] { grow(dir_ / model, dir_ / ("grown" + model), {}, {.threads = 2, .max_shard_bytes = 32 * kMiB}); });
  };
  const uint64_t small = peak("24"), large = peak("96");
  EXPECT_LT(large, small + 16 * kMiB) << "72 MiB more to read and 144 MiB more to write";
  EXPECT_LT(large, 96 * kMiB);
}

/// Tensors of a few bytes: what is held for each of them is all that there is.
TEST_F(UpcycleMemory, OfManyTensorsLittleIsHeldForEach) {
  constexpr int64_t kLayers = 4, kFew = 64, kMany = 8192, kMatrices = 3;
  for (const int64_t experts : {kFew, kMany}) {
    write_model(dir_ / std::to_string(experts), {.family = "qwen3_moe",
                                                 .vocab_size = 8,
                                                 .model_dim = 4,
                                                 .num_layers = kLayers,
                                                 .num_experts = experts,
                                                 .top_k = 1,
                                                 .expert_width = 2});
  }
  // Bytes for each tensor that the larger model has more.
  const auto held = [&](uint64_t tensors, const std::function<void(const fs::path&)>& act) {
    const auto peak = [&](int64_t experts) { return peak_bytes_of([&] { act(dir_ / std::to_string(experts)); }); };
    const uint64_t few = peak(kFew), many = peak(kMany);
    return (many - std::min(few, many)) / tensors;
  };
  constexpr auto kMore = static_cast<uint64_t>((kMany - kFew) * kLayers * kMatrices);  // 97,000 tensors
  EXPECT_LT(held(kMore, [](const fs::path& model) { (void)families::open_model(model).digest(); }), 400u);
  for (const char* method : {"copy", "copy_noise"}) {  // 97,000 are read, and 195,000 written
    SCOPED_TRACE(method);
    const auto expand_it = [&](const fs::path& model) {
      grow(model, fs::path(model.string() + method), {.expert_init = {method, {}}}, {.threads = 2});
    };
    EXPECT_LT(held(3 * kMore, expand_it), 400u);
  }
}

}  // namespace
}  // namespace coppice::verify
