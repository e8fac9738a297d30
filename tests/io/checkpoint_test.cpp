#include "coppice/io/checkpoint.h"

#include <gtest/gtest.h>

#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/file_rules.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempDir;
using testing::write_tensors;
using testing::write_text;

constexpr const char* kShardA = "model-00001-of-00002.safetensors";
constexpr const char* kShardB = "model-00002-of-00002.safetensors";

void write_config(const fs::path& directory) { write_text(directory / "config.json", R"({"model_type":"olmoe"})"); }

void write_index(const fs::path& directory, std::string_view weight_map) {
  write_text(directory / "model.safetensors.index.json",
             cat(R"({"metadata":{"total_size":16},"weight_map":)", weight_map, "}"));
}

void write_two_shards(const fs::path& directory) {
  write_config(directory);
  write_tensors(directory / kShardA, {{"b", {2}, {1.0f, 2.0f}}, {"c", {}, {3.0f}, Dtype::kBf16}});
  write_tensors(directory / kShardB, {{"a", {1}, {4.0f}, Dtype::kF16}});
  write_index(directory, cat(R"({"a":")", kShardB, R"(","b":")", kShardA, R"(","c":")", kShardA, R"("})"));
}

TEST(CheckpointOpen, ReadsOneFile) {
  const TempDir dir;
  write_config(dir.path());
  write_tensors(dir / "model.safetensors", {{"w", {2}, {1.0f, -2.0f}}});
  const auto checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(checkpoint.names(), std::vector<std::string>{"w"});
  EXPECT_EQ(checkpoint.read_f32("w"), (std::vector<float>{1.0f, -2.0f}));
  EXPECT_EQ(checkpoint.config().at("model_type").as_string(), "olmoe");
  EXPECT_EQ(checkpoint.total_bytes(), 8u);
}

TEST(CheckpointOpen, ReadsShardsAndSortsNamesOverThem) {
  const TempDir dir;
  write_two_shards(dir.path());
  for (const auto& path : {dir.path(), dir / "", dir / "."}) {
    const auto checkpoint = Checkpoint::open(path);
    EXPECT_EQ(checkpoint.names(), (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_EQ(checkpoint.read_f32("a"), std::vector<float>{4.0f});
    EXPECT_EQ(checkpoint.read_f32("c"), std::vector<float>{3.0f});
    EXPECT_EQ(checkpoint.at("b").file->path().filename(), kShardA);
    EXPECT_TRUE(checkpoint.contains("b"));
    EXPECT_FALSE(checkpoint.contains("bb"));
    EXPECT_EQ(checkpoint.total_bytes(), 12u);
  }
}

TEST(CheckpointOpen, KeepsItsEntriesWhenItIsMoved) {
  const TempDir dir;
  write_two_shards(dir.path());
  auto first = Checkpoint::open(dir.path());
  const auto second = std::move(first);
  EXPECT_EQ(second.read_f32("b"), (std::vector<float>{1.0f, 2.0f}));
}

TEST(CheckpointOpen, SaysWhatADirectoryLacks) {
  const TempDir dir;
  const auto open = [&] { (void)Checkpoint::open(dir / "m"); };
  expect_error(ErrorCode::kNotFound, {"does not exist"}, open);
  fs::create_directory(dir / "m");
  expect_error(ErrorCode::kNotFound, {"no config.json"}, open);
  write_config(dir / "m");
  expect_error(ErrorCode::kNotFound, {"no weights", "model.safetensors"}, open);
  write_text(dir / "m" / "config.json", "[]");
  expect_error(ErrorCode::kFormat, {"config.json"}, open);
}

// Memory and time are bounded whatever lies there as config.json.
TEST(CheckpointOpen, RejectsAConfigurationOfASizeThatNoModelHas) {
  const TempDir dir;
  const auto open = [&] { (void)Checkpoint::open(dir.path()); };
  const auto zeros = [](size_t count) {
    std::string text = R"({"junk": [0)";
    for (size_t i = 1; i < count; ++i) text += ",0";
    return text + "]}";
  };
  write_text(dir / "config.json", zeros(9'000'000));
  expect_error(ErrorCode::kFormat, {"config.json", "longer than 16 MiB"}, open);
  write_text(dir / "config.json", zeros(600'000));
  expect_error(ErrorCode::kFormat, {"config.json: line 1, column ", "over 500000 values"}, open);
}

TEST(CheckpointOpen, RefusesAConfigurationThatNamesOtherWeights) {
  const TempDir dir;
  write_tensors(dir / "model.safetensors", {{"w", {1}, {1.0f}}});
  write_tensors(dir / "consolidated.safetensors", {{"w", {1}, {2.0f}}});
  for (const char* value : {R"("consolidated.safetensors")", R"("model.safetensors")", "7"}) {
    write_text(dir / "config.json", cat(R"({"transformers_weights":)", value, "}"));
    expect_error(ErrorCode::kUnsupported, {"config.json", "transformers_weights", value, "model.safetensors"},
                 [&] { (void)Checkpoint::open(dir.path()); });
  }
  write_text(dir / "config.json", R"({"transformers_weights":null})");
  EXPECT_EQ(Checkpoint::open(dir.path()).names().size(), 1u);
}

TEST(CheckpointOpen, NamesEveryMissingShardAtOnce) {
  const TempDir dir;
  write_config(dir.path());
  write_index(dir.path(), R"({"a":"x-1.safetensors","b":"x-2.safetensors"})");
  expect_error(ErrorCode::kNotFound, {"2 of 2 shards", "x-1.safetensors", "x-2.safetensors"},
               [&] { (void)Checkpoint::open(dir.path()); });
}

TEST(CheckpointOpen, RejectsAnIndexThatDisagreesWithItsShards) {
  const TempDir dir;
  const auto open = [&] { (void)Checkpoint::open(dir.path()); };
  write_two_shards(dir.path());
  write_index(dir.path(), cat(R"({"a":")", kShardA, R"(","b":")", kShardA, R"(","z":")", kShardB, R"("})"));
  expect_error(ErrorCode::kFormat, {"'a' is not in", "'z' is not in", "'c' is in", "not in the index"}, open);
  for (const char* map : {"[]", R"({"a":1})", "null"}) {
    write_index(dir.path(), map);
    expect_error(ErrorCode::kFormat, {"model.safetensors.index.json"}, open);
  }
  write_text(dir / "model.safetensors.index.json", "{}");
  expect_error(ErrorCode::kFormat, {"no weight_map"}, open);
}

TEST(CheckpointOpen, RejectsATensorInTwoShards) {
  const TempDir dir;
  write_two_shards(dir.path());
  write_tensors(dir / kShardB, {{"a", {1}, {4.0f}}, {"b", {1}, {5.0f}}});
  expect_error(ErrorCode::kFormat, {"'b' is in", kShardA, kShardB}, [&] { (void)Checkpoint::open(dir.path()); });
}

TEST(CheckpointOpen, RejectsShardNamesThatLeaveTheDirectory) {
  const TempDir dir;
  const auto model = dir / "m";
  write_config(model);
  write_tensors(dir / "outside.safetensors", {{"a", {1}, {4.0f}}});
  fs::create_symlink(dir / "outside.safetensors", model / "link.safetensors");
  fs::create_directory_symlink(dir.path(), model / "up");
  const auto absolute = (dir / "outside.safetensors").string();
  for (const std::string& name :
       {std::string("../outside.safetensors"), std::string("x/../../outside.safetensors"), absolute,
        std::string("link.safetensors"), std::string("up/outside.safetensors"), std::string("")}) {
    SCOPED_TRACE(name);
    write_index(model, cat(R"({"a":")", name, R"("})"));
    expect_error(ErrorCode::kFormat, {"inside the directory"}, [&] { (void)Checkpoint::open(model); });
  }
}

// To the system a name ends at its NUL: what was checked would not be what is opened.
TEST(CheckpointOpen, RejectsShardNamesWithANul) {
  const TempDir dir;
  write_two_shards(dir.path());
  write_index(dir.path(), cat(R"({"a":")", kShardB, R"(\u0000/x","b":")", kShardA, R"(","c":")", kShardA, R"("})"));
  expect_error(ErrorCode::kFormat, {"index.json", "NUL"}, [&] { (void)Checkpoint::open(dir.path()); });
}

TEST(CheckpointOpen, RejectsAnIndexThatNamesATensorTwice) {
  const TempDir dir;
  write_two_shards(dir.path());
  write_index(dir.path(), cat(R"({"a":")", kShardB, R"(","a":")", kShardA, R"("})"));
  expect_error(ErrorCode::kFormat, {"index.json", "a"}, [&] { (void)Checkpoint::open(dir.path()); });
}

// Names may be of any length; messages are not.
TEST(CheckpointOpen, KeepsHostileNamesOutOfMessages) {
  const TempDir dir;
  write_two_shards(dir.path());
  write_index(dir.path(), cat(R"({"\u001b[2J)", std::string(1 << 20, 'x'), R"(":7})"));
  try {
    (void)Checkpoint::open(dir.path());
    FAIL() << "a file that is a number was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code, ErrorCode::kFormat);
    EXPECT_LT(std::string_view(e.what()).size(), 1000u);
    EXPECT_EQ(std::string_view(e.what()).find('\x1b'), std::string_view::npos);
  }
}

TEST(CheckpointOpen, FollowsLinksThatStayInside) {
  const TempDir dir;
  write_config(dir.path());
  write_tensors(dir / "sub" / "real.safetensors", {{"a", {1}, {4.0f}}});
  fs::create_symlink("sub/real.safetensors", dir / "link.safetensors");
  for (const char* name : {"link.safetensors", "sub/real.safetensors", "./sub/real.safetensors"}) {
    write_index(dir.path(), cat(R"({"a":")", name, R"("})"));
    EXPECT_EQ(Checkpoint::open(dir.path()).read_f32("a"), std::vector<float>{4.0f}) << name;
  }
}

// models--ORG--NAME/snapshots/REVISION/FILE -> ../../blobs/HASH
TEST(CheckpointOpen, ReadsTheHuggingFaceCache) {
  const TempDir dir;
  const auto repository = dir / "models--org--name";
  const auto snapshot = repository / "snapshots" / "0123abc";
  fs::create_directories(snapshot);
  write_text(repository / "blobs" / "c0", R"({"model_type":"olmoe"})");
  write_tensors(repository / "blobs" / "d1", {{"a", {1}, {4.0f}}});
  write_text(repository / "blobs" / "e2", "{}");
  fs::create_symlink("../../blobs/c0", snapshot / "config.json");
  fs::create_symlink("../../blobs/d1", snapshot / "model.safetensors");
  fs::create_symlink("../../blobs/e2", snapshot / "tokenizer.json");
  const auto checkpoint = Checkpoint::open(snapshot);
  EXPECT_EQ(checkpoint.read_f32("a"), std::vector<float>{4.0f});
  EXPECT_EQ(sort_files(checkpoint).carried, std::vector<fs::path>{"tokenizer.json"});

  write_text(repository / "secret", "{}");
  fs::create_symlink("../../secret", snapshot / "x.json");
  expect_error(ErrorCode::kFormat, {"x.json", "symbolic link"}, [&] { (void)sort_files(checkpoint); });
}

TEST(CheckpointAt, SuggestsTheNearestName) {
  const TempDir dir;
  write_config(dir.path());
  write_tensors(dir / "model.safetensors", {{"model.norm.weight", {1}, {1.0f}}});
  const auto checkpoint = Checkpoint::open(dir.path());
  expect_error(ErrorCode::kNotFound, {"'model.norm.weigth'", "model.norm.weight"},
               [&] { (void)checkpoint.at("model.norm.weigth"); });
}

TEST(CheckpointReadF32, RefusesIntegers) {
  const TempDir dir;
  write_config(dir.path());
  testing::write_raw_safetensors(dir / "model.safetensors", R"({"q":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}})",
                                 size_t{2});
  const auto checkpoint = Checkpoint::open(dir.path());
  expect_error(ErrorCode::kShape, {"'q' is I8"}, [&] { (void)checkpoint.read_f32("q"); });
}

TEST(CheckpointOpen, SaysWhatIsMissingBesideShardsWithoutAnIndex) {
  const TempDir dir;
  write_two_shards(dir.path());
  fs::remove(dir / "model.safetensors.index.json");
  expect_error(ErrorCode::kNotFound, {kShardA, kShardB, "model.safetensors.index.json", "download or write the index"},
               [&] { (void)Checkpoint::open(dir.path()); });
}

}  // namespace
}  // namespace coppice::io
