#include <gtest/gtest.h>

#include "coppice/io/checkpoint.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

constexpr const char* kConfig = R"({"model_type":"olmoe","num_experts":4,"rope_theta":10000.0,"nested":{"a":1,"b":2}})";
const std::vector<testing::NamedTensor> kTensors = {{"router", {2}, {1.0f, 2.0f}}, {"w", {2}, {3.0f, 4.0f}}};

std::string digest(std::string_view config, std::span<const testing::NamedTensor> tensors,
                   const std::vector<std::string>& routers = {"router"}) {
  const testing::TempDir dir;
  testing::write_text(dir / "config.json", config);
  testing::write_tensors(dir / "model.safetensors", tensors);
  return model_digest(Checkpoint::open(dir.path()), routers);
}

TEST(ModelDigest, DoesNotChangeWithWhatDoesNotChangeTheModel) {
  const auto wanted = digest(kConfig, kTensors);
  EXPECT_EQ(wanted.size(), 64u);
  EXPECT_EQ(
      digest(
          R"({"num_experts":4,"nested":{"b":2,"a":1},"rope_theta":10000,"model_type":"olmoe","dtype":"bfloat16",)"
          R"("torch_dtype":"x","transformers_version":"5","_name_or_path":"y","use_cache":false,"architectures":["Z"]})",
          kTensors),
      wanted);
  auto reordered = kTensors;
  std::swap(reordered[0], reordered[1]);
  EXPECT_EQ(digest(kConfig, reordered), wanted);
  EXPECT_EQ(digest(kConfig, kTensors, {"router", "router"}), wanted);
  // The bytes of other tensors are not read: they may be hundreds of gigabytes.
  auto other = kTensors;
  other[1].values = {9.0f, 9.0f};
  EXPECT_EQ(digest(kConfig, other), wanted);
}

TEST(ModelDigest, ChangesWithLayoutConfigurationAndRouters) {
  const auto first = digest(kConfig, kTensors);
  EXPECT_NE(digest(R"({"model_type":"olmoe","num_experts":5})", kTensors), first);
  auto changed = kTensors;
  changed[0].values[1] = 2.5f;
  EXPECT_NE(digest(kConfig, changed), first);
  changed = kTensors;
  changed[1].shape = {1, 2};
  EXPECT_NE(digest(kConfig, changed), first);
  changed = kTensors;
  changed[1].dtype = Dtype::kBf16;
  EXPECT_NE(digest(kConfig, changed), first);
  changed = kTensors;
  changed[1].name = "v";
  EXPECT_NE(digest(kConfig, changed), first);
}

TEST(ModelDigest, NamesARouterThatIsNotThere) {
  testing::expect_error(ErrorCode::kNotFound, {"'gate'"}, [] { (void)digest(kConfig, kTensors, {"gate"}); });
}

}  // namespace
}  // namespace coppice::io
