#include <gtest/gtest.h>

#include "coppice/io/atomic_file.h"
#include "coppice/io/checkpoint.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

std::vector<TensorInfo> of_sizes(std::initializer_list<int64_t> sizes) {
  std::vector<TensorInfo> out;
  for (const auto size : sizes) {
    out.push_back({.name = std::string(1, static_cast<char>('z' - out.size())), .dtype = Dtype::kU8, .shape = {size}});
  }
  return out;
}

std::vector<std::vector<uint64_t>> bytes_by_shard(const ShardLayout& plan) {
  std::vector<std::vector<uint64_t>> out;
  for (const auto& shard : plan.shards) {
    auto& bytes = out.emplace_back();
    for (const auto& t : shard.tensors) bytes.push_back(t.bytes);
  }
  return out;
}

TEST(ShardLayout, KeepsTheOrderAndTheLimit) {
  using Shards = std::vector<std::vector<uint64_t>>;
  EXPECT_EQ(bytes_by_shard(lay_out_shards(of_sizes({4, 4, 4}), 8)), (Shards{{4, 4}, {4}}));
  EXPECT_EQ(bytes_by_shard(lay_out_shards(of_sizes({4, 5, 4}), 8)), (Shards{{4}, {5}, {4}}));
  EXPECT_EQ(bytes_by_shard(lay_out_shards(of_sizes({2, 20, 0, 2}), 8)), (Shards{{2}, {20}, {0, 2}}));
  EXPECT_EQ(bytes_by_shard(lay_out_shards({}, 8)), Shards{{}});
  EXPECT_EQ(lay_out_shards(of_sizes({2, 20, 2}), 8).total_bytes, 24u);
}

TEST(ShardLayout, KeepsHeadersAsShortAsReadersTakeThem) {
  std::vector<TensorInfo> tensors;
  for (int i = 0; i < 110; ++i) {
    tensors.push_back({.name = std::to_string(i) + std::string(1'000'000, 'n'), .dtype = Dtype::kU8, .shape = {1}});
  }
  EXPECT_ANY_THROW((void)lay_out("one", tensors)) << "too many for one file";
  const auto plan = lay_out_shards(std::move(tensors), 1000);
  ASSERT_EQ(plan.shards.size(), 2u);
  for (const auto& shard : plan.shards) EXPECT_NO_THROW((void)lay_out(shard.file, shard.tensors));
}

TEST(ShardLayout, NamesFilesAsHuggingFaceDoes) {
  EXPECT_EQ(lay_out_shards(of_sizes({4}), 8).shards[0].file, "model.safetensors");
  const auto two = lay_out_shards(of_sizes({8, 8}), 8, "optimizer");
  EXPECT_EQ(two.shards[0].file, "optimizer-00001-of-00002.safetensors");
  EXPECT_EQ(two.shards[1].file, "optimizer-00002-of-00002.safetensors");
}

TEST(ShardIndex, HasTheLayoutOfHuggingFace) {
  const testing::TempDir dir;
  write_shard_index(dir.path(), lay_out_shards(of_sizes({8, 4}), 8));
  EXPECT_EQ(
      read_file(dir / "model.safetensors.index.json"),
      "{\n  \"metadata\": {\n    \"total_size\": 12\n  },\n  \"weight_map\": {\n"
      "    \"y\": \"model-00002-of-00002.safetensors\",\n    \"z\": \"model-00001-of-00002.safetensors\"\n  }\n}\n");
}

TEST(ShardIndex, IsNotWrittenForOneFile) {
  const testing::TempDir dir;
  write_shard_index(dir.path(), lay_out_shards(of_sizes({8}), 8));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

}  // namespace
}  // namespace coppice::io
