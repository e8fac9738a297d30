#include <gtest/gtest.h>
#include <malloc.h>

#include <algorithm>
#include <cstring>
#include <fstream>

#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/io/safetensors.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

using testing::expect_error;
using testing::TempDir;
using testing::write_raw_safetensors;
using testing::write_text;

struct Malformed {
  const char* name;
  std::string header;
  size_t data_bytes;
  std::initializer_list<const char*> says;
};

const Malformed kMalformed[] = {
    {"TensorPastTheEnd",
     R"({"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})",
     12,
     {"'w' ends at byte 16 of 12", "the file is incomplete (download it again)"}},
    {"EveryTensorPastTheEnd",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}})",
     2,
     {"'a' ends at byte 4 of 2", "'b' ends at byte 8 of 2"}},
    {"Overlap",
     R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[6],"data_offsets":[4,10]}})",
     10,
     {"'b' starts at byte 4 and overlaps 'a', which ends at byte 8"}},
    {"SameBytesTwice",
     R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})",
     8,
     {"overlaps"}},
    {"EmptyTensorInsideAnother",
     R"({"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}})",
     8,
     {"'b' starts at byte 4 and overlaps 'a'"}},
    {"Gap",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[6,10]}})",
     10,
     {"'b' starts at byte 6 and leaves a gap after byte 4"}},
    {"GapAtTheStart",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
     6,
     {"'a' starts at byte 2 and leaves a gap after byte 0"}},
    {"TrailingBytes",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
     7,
     {"3 bytes belong to no tensor after 'a'"}},
    {"DataWithoutTensors", "{}", 3, {"3 bytes belong to no tensor after the header"}},
    {"BeginAfterEnd",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[8,4]}})",
     8,
     {"'a' starts at byte 8, after its end at byte 4"}},
    {"WrongByteCount",
     R"({"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,8]}})",
     8,
     {"'a' has 8 bytes, but BF16 [2, 3] requires 12"}},
    {"EveryWrongByteCount",
     R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[],"data_offsets":[4,6]}})",
     6,
     {"'a' has 4 bytes", "'b' has 2 bytes, but F32 [] requires 4"}},
    {"NegativeSize", R"({"a":{"dtype":"U8","shape":[-1,-4],"data_offsets":[0,4]}})", 4, {"'a'", "sizes of 0 or more"}},
    {"FractionalSize", R"({"a":{"dtype":"U8","shape":[4.5],"data_offsets":[0,4]}})", 4, {"'a'", "sizes of 0 or more"}},
    {"SizeOver64Bits",
     R"({"a":{"dtype":"U8","shape":[18446744073709551617],"data_offsets":[0,1]}})",
     1,
     {"'a'", "sizes of 0 or more"}},
    {"OverflowingShape",
     R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}})",
     0,
     {"'a'", "overflows"}},
    {"OverflowHiddenByAZero",
     R"({"a":{"dtype":"U8","shape":[4294967296,4294967296,0],"data_offsets":[0,0]}})",
     0,
     {"'a'", "overflows"}},
    {"ShapeIsNoList", R"({"a":{"dtype":"U8","shape":4,"data_offsets":[0,4]}})", 4, {"'a' has a shape"}},
    {"HalfABytePacked", R"({"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}})", 2, {"'a'", "F4 [3]", "not whole"}},
    {"NegativeOffset", R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[-4,0]}})", 4, {"'a' has data_offsets"}},
    {"OffsetOver64Bits",
     R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[18446744073709551612,18446744073709551616]}})",
     4,
     {"'a' has data_offsets"}},
    {"ThreeOffsets", R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4,8]}})", 4, {"'a' has data_offsets"}},
    {"UnknownDtype",
     R"({"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}})",
     4,
     {"'a' has the unknown dtype 'F31'"}},
    {"DtypeIsNoText", R"({"a":{"dtype":32,"shape":[1],"data_offsets":[0,4]}})", 4, {"'a' has a dtype"}},
    {"MissingShape", R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, {"'a' has no shape"}},
    {"UnknownKey", R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"stride":[1]}})", 4, {"'a'", "'stride'"}},
    {"EntryIsNoObject", R"({"a":[1,2]})", 0, {"'a' is not an object"}},
    {"DuplicateName",
     R"({"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"w":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
     4,
     {"w"}},
    {"MetadataValueIsNoText", R"({"__metadata__":{"format":1}})", 0, {"'format'", "__metadata__"}},
    {"MetadataIsNoObject", R"({"__metadata__":["pt"]})", 0, {"__metadata__ is not an object"}},
    {"HeaderIsAnArray", R"([{"dtype":"F32"}])", 0, {"not a JSON object"}},
    {"HeaderIsEmpty", "", 0, {"not a JSON object"}},
    {"HeaderStartsWithASpace", " {}", 0, {"not a JSON object"}},
    {"HeaderIsCutOff", R"({"w":{"dtype":"F32","sh)", 0, {}},
    {"HeaderHasTwoValues", "{}{}", 0, {}},
    {"HeaderIsNoUtf8", "{\"\xff\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, {}},
    {"HeaderIsNestedDeeply", "{\"a\":" + std::string(100000, '[') + std::string(100000, ']') + "}", 0, {}},
};

class SafetensorsOpenRejects : public ::testing::TestWithParam<Malformed> {};
INSTANTIATE_TEST_SUITE_P(All, SafetensorsOpenRejects, ::testing::ValuesIn(kMalformed),
                         [](const auto& test) { return test.param.name; });

TEST_P(SafetensorsOpenRejects, AndNamesFileAndTensor) {
  const TempDir dir;
  const auto& m = GetParam();
  const auto path = write_raw_safetensors(dir / "m.safetensors", m.header, m.data_bytes);
  expect_error(ErrorCode::kFormat, {"m.safetensors"}, [&] { (void)SafetensorsFile::open(path); });
  expect_error(ErrorCode::kFormat, m.says, [&] { (void)SafetensorsFile::open(path); });
}

TEST(SafetensorsOpen, RejectsFilesShorterThanTheirHeader) {
  const TempDir dir;
  const auto path = dir / "m.safetensors";
  const auto open = [&] { (void)SafetensorsFile::open(path); };
  write_text(path, "");
  expect_error(ErrorCode::kFormat, {"m.safetensors", "0 bytes long"}, open);
  write_text(path, "1234567");
  expect_error(ErrorCode::kFormat, {"7 bytes long"}, open);
  write_text(path, std::string("\x10\0\0\0\0\0\0\0{}", 10));
  expect_error(ErrorCode::kFormat, {"the header ends at byte 24 of 10"}, open);
}

// The length is checked before anything of that size is read or allocated.
TEST(SafetensorsOpen, RejectsHugeHeaderLengths) {
  const TempDir dir;
  const auto path = dir / "m.safetensors";
  for (const uint64_t length : {uint64_t{100'000'001}, uint64_t{1} << 40, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    write_text(path, std::string(reinterpret_cast<const char*>(&length), 8) + "{}");
    expect_error(ErrorCode::kFormat, {"at most 100000000"}, [&] { (void)SafetensorsFile::open(path); });
  }
}

TEST(SafetensorsOpen, RecognisesAGitLfsPointer) {
  const TempDir dir;
  write_text(dir / "m.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n");
  expect_error(ErrorCode::kFormat, {"git lfs pull"}, [&] { (void)SafetensorsFile::open(dir / "m.safetensors"); });
}

TEST(SafetensorsOpen, TellsAMissingFileFromADirectory) {
  const TempDir dir;
  expect_error(ErrorCode::kNotFound, {"none.safetensors"},
               [&] { (void)SafetensorsFile::open(dir / "none.safetensors"); });
  expect_error(ErrorCode::kFormat, {"is a directory"}, [&] { (void)SafetensorsFile::open(dir.path()); });
}

TEST(SafetensorsOpen, KeepsControlCharactersOfNamesOutOfMessages) {
  const TempDir dir;
  const auto path = write_raw_safetensors(dir / "m.safetensors", R"({"a\u001b[31m\n":3})", size_t{0});
  expect_error(ErrorCode::kFormat, {"'a\\u001b[31m\\n'"}, [&] { (void)SafetensorsFile::open(path); });
}

TEST(SafetensorsOpen, TakesScalarsEmptyTensorsAndPadding) {
  const TempDir dir;
  const auto path = write_raw_safetensors(
      dir / "m.safetensors",
      R"({"scalar":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"empty":{"dtype":"F32","shape":[3,0],"data_offsets":[4,4]},)"
      R"("last":{"dtype":"U8","shape":[2],"data_offsets":[4,6]},"__metadata__":{"format":"pt","k":"ä"}}   )",
      size_t{6});
  const auto file = SafetensorsFile::open(path);
  ASSERT_EQ(file.tensors().size(), 3u);
  EXPECT_EQ(file.find("scalar")->elements(), 1);
  EXPECT_EQ(file.find("empty")->elements(), 0);
  EXPECT_TRUE(file.data(*file.find("empty")).empty());
  EXPECT_EQ(file.data(*file.find("last"))[1], std::byte{5});
  EXPECT_EQ(file.tensors()[1].name, "empty");  // by offset
  EXPECT_EQ(file.metadata().at("k"), "ä");
  EXPECT_EQ(file.find("none"), nullptr);
}

TEST(SafetensorsOpen, TakesAFileWithoutTensors) {
  const TempDir dir;
  EXPECT_TRUE(SafetensorsFile::open(write_raw_safetensors(dir / "m.safetensors", "{}", size_t{0})).tensors().empty());
}

// The format does not promise that the data section starts at a multiple of the element size.
TEST(SafetensorsOpen, ReadsUnalignedData) {
  const TempDir dir;
  for (size_t pad = 0; pad < 8; ++pad) {
    const float values[] = {1.5f, -2.25f};
    const auto path = write_raw_safetensors(
        dir / "m.safetensors", R"({"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})" + std::string(pad, ' '),
        std::string_view(reinterpret_cast<const char*>(values), sizeof values));
    const auto file = SafetensorsFile::open(path);
    std::vector<float> out(2);
    to_f32(Dtype::kF32, file.data(*file.find("w")), out);
    EXPECT_EQ(out, (std::vector<float>{1.5f, -2.25f}));
  }
}

TEST(SafetensorsOpen, ReadsHeadersOfManyTensors) {
  const TempDir dir;
  constexpr size_t kTensors = 100'000;
  std::string header = "{";
  for (size_t i = 0; i < kTensors; ++i) {
    header += cat(i ? "," : "", "\"model.layers.", i,
                  ".mlp.experts.weight\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[", i, ",", i + 1, "]}");
  }
  const auto file =
      SafetensorsFile::open(write_raw_safetensors(dir / "m.safetensors", header + "}", std::string(kTensors, 'x')));
  EXPECT_EQ(file.tensors().size(), kTensors);
  EXPECT_EQ(file.find("model.layers.99999.mlp.experts.weight")->offset, kTensors - 1);
}

uint64_t resident_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssFile:")) return std::stoull(line.substr(8));
  }
  return 0;
}

/// The header of `tensors` one byte each.
std::string header_of_bytes(size_t tensors) {
  std::string header = "{";
  for (size_t i = 0; i < tensors; ++i) {
    header += cat(i == 0 ? "" : ",", "\"t", i, R"(":{"dtype":"U8","shape":[1],"data_offsets":[)", i, ",", i + 1, "]}");
  }
  return header + "}";
}

TEST(SafetensorsOpen, TakesMemoryInProportionToTheHeader) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer has its own heap";
#endif
  constexpr size_t kTensors = 20000;
  const TempDir dir;
  const std::string header = header_of_bytes(kTensors);
  const auto path = write_raw_safetensors(dir / "m.safetensors", header, kTensors);
  const auto taken = [] {
    const struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
  };
  const uint64_t before = taken();
  const auto file = SafetensorsFile::open(path);
  EXPECT_LT(taken() - before, 3 * header.size());
  EXPECT_EQ(file.find(cat("t", kTensors - 1))->offset, kTensors - 1);
  EXPECT_EQ(file.find("t"), nullptr);
}

// What is wrong with a header of 100 MB does not take more memory than the header.
TEST(SafetensorsOpen, RejectsHeadersOfTooMuch) {
  const TempDir dir;
  const auto path = dir / "m.safetensors";
  const auto open = [&] { (void)SafetensorsFile::open(path); };
  const auto repeated = [](const std::string& item, size_t times) {
    std::string text = item;
    for (size_t i = 1; i < times; ++i) text.append(",").append(item);
    return text;
  };
  write_raw_safetensors(path,
                        cat(R"({"w":{"dtype":"U8","shape":[)", repeated("1", 70000), R"(],"data_offsets":[0,1]}})"), 1);
  expect_error(ErrorCode::kFormat, {"m.safetensors: line 1, column", "over 65536 values"}, open);
  write_raw_safetensors(path, cat(R"({"__metadata__":{"a":[)", repeated("[]", 70000), "]}}"), size_t{0});
  expect_error(ErrorCode::kFormat, {"m.safetensors: line 1, column", "over 65536 values"}, open);
  write_raw_safetensors(path, cat("{", repeated("\"a\":0", 100000), "}"), size_t{0});
  expect_error(ErrorCode::kFormat, {"'a' is not an object", "(99992 more)"}, open);
  write_raw_safetensors(path, R"({"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}})", size_t{0});
  expect_error(ErrorCode::kFormat, {"__metadata__ appears twice"}, open);
}

TEST(SafetensorsRelease, GivesBackResidentMemoryAndKeepsTheData) {
  const TempDir dir;
  constexpr size_t kBytes = size_t{32} << 20;
  const auto path = write_raw_safetensors(
      dir / "m.safetensors", cat(R"({"w":{"dtype":"U8","shape":[)", kBytes, R"(],"data_offsets":[0,)", kBytes, "]}}"),
      kBytes);
  const auto file = SafetensorsFile::open(path);
  const auto& w = file.tensors().front();
  const auto sum = [&] {
    uint64_t total = 0;
    for (const auto b : file.data(w)) total += std::to_integer<uint64_t>(b);
    return total;
  };
  const auto before = sum();
  const auto resident = resident_kib();
  file.release(w);
  EXPECT_LT(resident_kib() + (kBytes >> 10) / 2, resident);
  EXPECT_EQ(sum(), before);
}

TEST(SafetensorsRead, GivesTheBytesWithoutMakingThemResident) {
  const TempDir dir;
  constexpr size_t kBytes = size_t{8} << 20;
  const auto path = write_raw_safetensors(
      dir / "m.safetensors", cat(R"({"w":{"dtype":"U8","shape":[)", kBytes, R"(],"data_offsets":[0,)", kBytes, "]}}"),
      kBytes);
  const auto file = SafetensorsFile::open(path);
  std::vector<std::byte> bytes(kBytes - 3);
  const auto resident = resident_kib();
  file.read(3, bytes);
  EXPECT_LT(resident_kib(), resident + 1024);
  const auto mapped = file.data(file.tensors().front()).subspan(3);
  EXPECT_TRUE(std::ranges::equal(bytes, mapped));
}

TEST(SafetensorsRead, SaysWhenTheFileHasBecomeShorter) {
  const TempDir dir;
  const auto path = write_raw_safetensors(dir / "m.safetensors",
                                          R"({"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}})", size_t{8});
  const auto file = SafetensorsFile::open(path);
  std::filesystem::resize_file(path, std::filesystem::file_size(path) - 4);
  std::vector<std::byte> bytes(8);
  expect_error(ErrorCode::kIo, {"m.safetensors", "was truncated from"}, [&] { file.read(0, bytes); });
}

// A mapped page past the end of a file kills whoever reads it.
TEST(SafetensorsData, SaysWhenTheFileHasBecomeShorter) {
  const TempDir dir;
  testing::write_tensors(dir / "m.safetensors", {{"w", {4096}, std::vector<float>(4096, 1.0f)}});
  const auto file = SafetensorsFile::open(dir / "m.safetensors");
  EXPECT_EQ(file.data(file.tensors().front()).size(), 4u * 4096);
  std::filesystem::resize_file(dir / "m.safetensors", 100);
  expect_error(ErrorCode::kIo, {"m.safetensors", "was truncated from", "to 100 bytes"},
               [&] { (void)file.data(file.tensors().front()); });
}

TEST(SafetensorsDataDeathTest, EndsWithAMessageWhereTheFileIsCutUnderTheReader) {
  const TempDir dir;
  testing::write_tensors(dir / "m.safetensors", {{"w", {65536}, std::vector<float>(65536, 1.0f)}});
  EXPECT_EXIT(
      {
        catch_interrupts();
        const auto file = SafetensorsFile::open(dir / "m.safetensors");
        const auto bytes = file.data(file.tensors().front());
        std::filesystem::resize_file(dir / "m.safetensors", 100);
        ::_exit(static_cast<int>(bytes.back()));
      },
      ::testing::ExitedWithCode(exit_status(ErrorCode::kIo)), "was truncated");
}

TEST(SafetensorsFileCopy, OutlivesTheFirst) {
  const TempDir dir;
  auto first = std::make_unique<SafetensorsFile>(SafetensorsFile::open(write_raw_safetensors(
      dir / "m.safetensors", R"({"w":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}})", size_t{3})));
  const SafetensorsFile second = *first;
  first.reset();
  EXPECT_EQ(second.data(*second.find("w"))[2], std::byte{2});
}

}  // namespace
}  // namespace coppice::io
