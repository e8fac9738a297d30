#include "coppice/matrix/quantised_matrix.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "tests/testing/errors.h"
#include "tests/testing/hand_made_models.h"
#include "tests/testing/temp_dir.h"

namespace coppice::matrix {
namespace {

using families::QuantisedTensor;
using families::Role;
using families::ValueCode;
using io::Dtype;
using ::testing::ElementsAre;
using testing::expect_error;
using testing::HandMadeTensor;
using testing::TempDir;

template <class T>
HandMadeTensor tensor(const std::string& name, Dtype dtype, const io::TensorShape& shape,
                      const std::vector<T>& values) {
  HandMadeTensor out = testing::raw_tensor(name, dtype, shape, 1);
  EXPECT_EQ(out.bytes.size(), values.size() * sizeof(T)) << name;
  std::memcpy(out.bytes.data(), values.data(), out.bytes.size());
  return out;
}

/// The parts of a quantised matrix in a file.
struct Stored {
  Stored(const TempDir& dir, const std::vector<HandMadeTensor>& tensors)
      : checkpoint(io::Checkpoint::open(
            testing::write_model(dir / "m", Json::object({{"model_type", Json("mixtral")}}), tensors))) {
    parts.values = checkpoint.at("values");
    parts.scales = checkpoint.at("scales");
  }
  std::vector<float> rows(int64_t first, int64_t count) const {
    std::vector<float> out(static_cast<size_t>(count * parts.cols));
    quantised_rows(parts, 0, whole_matrix(Role::kDenseUp, parts.rows, parts.cols), false).read(first, out);
    return out;
  }

  io::Checkpoint checkpoint;
  QuantisedTensor parts;
};

std::vector<uint8_t> all_codes() {
  std::vector<uint8_t> codes;
  for (int i = 0; i < 256; ++i) {
    if ((i & 0x7f) != 0x7f) codes.push_back(static_cast<uint8_t>(i));  // the two NaN of E4M3
  }
  return codes;
}

// Each code is sign, exponent and mantissa, decoded here digit by digit.
TEST(QuantisedRows, ReadEveryCodeOfE4M3) {
  const TempDir dir;
  Stored stored(dir, {tensor("values", Dtype::kF8E4M3, {1, 254}, all_codes()),
                      tensor<float>("scales", Dtype::kF32, {1}, {1.0F})});
  stored.parts.rows = 1;
  stored.parts.cols = stored.parts.block_cols = 254;
  const std::vector<float> found = stored.rows(0, 1);
  size_t at = 0;
  for (const uint8_t code : all_codes()) {
    const int exponent = (code >> 3) & 15, mantissa = code & 7;
    const double size = exponent == 0 ? mantissa * std::pow(2.0, -9) : (8 + mantissa) * std::pow(2.0, exponent - 10);
    EXPECT_EQ(found[at], static_cast<float>(code >= 128 ? -size : size)) << int{code};
    ++at;
  }
  EXPECT_EQ(found[126], 448);  // the largest
}

TEST(QuantisedRows, NameTheTensorOfANan) {
  const TempDir dir;
  Stored stored(dir, {tensor<uint8_t>("values", Dtype::kF8E4M3, {1, 2}, {0x38, 0x7f}),
                      tensor<float>("scales", Dtype::kF32, {1}, {1.0F})});
  stored.parts.rows = 1;
  stored.parts.cols = stored.parts.block_cols = 2;
  expect_error(ErrorCode::kNonFinite, {"'values'", "row 0, column 1"}, [&] { stored.rows(0, 1); });
}

// Blocks of 2 x 2 in a matrix of 3 x 3: the last ones are cut off.
TEST(QuantisedRows, TakeTheScaleOfTheirBlock) {
  const TempDir dir;
  Stored stored(dir, {tensor<int8_t>("values", Dtype::kI8, {3, 3}, {1, 2, 3, 4, 5, 6, 7, 8, -9}),
                      tensor<float>("scales", Dtype::kF32, {2, 2}, {1, 10, 100, 1000})});
  QuantisedTensor& parts = stored.parts;
  parts.code = ValueCode::kInt8;
  parts.rows = parts.cols = 3;
  parts.block_rows = parts.block_cols = parts.scale_rows = parts.scale_cols = 2;
  EXPECT_THAT(stored.rows(0, 3), ElementsAre(1, 2, 30, 4, 5, 60, 700, 800, -9000));
  EXPECT_THAT(stored.rows(2, 1), ElementsAre(700, 800, -9000));
}

// Codes 0 to 15 in two words of each row; groups of 8 columns; the zero points of eight rows share a word.
TEST(QuantisedRows, UnpackWordsAndZeroPoints) {
  const TempDir dir;
  Stored stored(dir, {tensor<uint32_t>("values", Dtype::kI32, {2, 2}, {0x76543210, 0xfedcba98, 0x88888888, 0x99999999}),
                      tensor<float>("scales", Dtype::kF32, {2, 2}, {1, 2, 1, 2}),
                      tensor<uint32_t>("zeros", Dtype::kI32, {1, 2}, {0x98, 0x78})});
  QuantisedTensor& parts = stored.parts;
  parts.zero_points = stored.checkpoint.at("zeros");
  parts.code = ValueCode::kPackedInt;
  parts.bits = 4;
  parts.rows = parts.scale_rows = parts.scale_cols = 2;
  parts.cols = 16;
  parts.block_cols = 8;
  EXPECT_THAT(stored.rows(0, 1), ElementsAre(-8, -7, -6, -5, -4, -3, -2, -1, 0, 2, 4, 6, 8, 10, 12, 14));
  EXPECT_THAT(stored.rows(1, 1), ElementsAre(-1, -1, -1, -1, -1, -1, -1, -1, 4, 4, 4, 4, 4, 4, 4, 4));
}

// Two experts of four rows, gate and up alternating; scales are powers of two. The place is one in a tensor [in, out].
TEST(QuantisedRows, FindTheRowsOfInterleavedStacks) {
  const TempDir dir;
  std::vector<uint8_t> codes;
  for (uint8_t row = 0; row < 8; ++row) codes.insert(codes.end(), 2, static_cast<uint8_t>(row | (row << 4)));
  Stored stored(dir, {tensor("values", Dtype::kU8, {2, 4, 2}, codes),
                      tensor<uint8_t>("scales", Dtype::kU8, {2, 4, 1}, {127, 127, 127, 127, 128, 128, 128, 126})});
  QuantisedTensor& parts = stored.parts;
  parts.is_stack = true;
  parts.count = 2;
  parts.code = ValueCode::kFloat4;
  parts.rows = parts.scale_rows = parts.cols = parts.block_cols = 4;
  const models::ExpertMatrix up{
      .role = Role::kExpertUp, .rows = 2, .cols = 4, .begin = 1, .row_step = 2, .col_step = 4};
  std::vector<float> found(8);
  quantised_rows(parts, 1, up, true).read(0, found);
  EXPECT_THAT(found, ElementsAre(6, 6, 6, 6, 3, 3, 3, 3));  // codes 5 (3) times 2, and 7 (6) times 1/2
}

TEST(QuantisedRows, FollowTheOrderOfColumns) {
  const TempDir dir;
  const std::vector<HandMadeTensor> tensors = {tensor<uint32_t>("values", Dtype::kI32, {1, 1}, {0x99999999}),
                                               tensor<float>("scales", Dtype::kF32, {1, 2}, {1, 2}),
                                               tensor<int32_t>("order", Dtype::kI32, {8}, {0, 1, 1, 0, 0, 1, 0, 1}),
                                               tensor<int32_t>("wrong", Dtype::kI32, {8}, {0, 1, 1, 2, 0, 1, 0, 1})};
  Stored stored(dir, tensors);
  QuantisedTensor& parts = stored.parts;
  parts.code = ValueCode::kPackedInt;
  parts.bits = 4;
  parts.rows = 1;
  parts.cols = 8;
  parts.block_cols = 4;
  parts.scale_cols = 2;
  parts.order = stored.checkpoint.at("order");
  EXPECT_THAT(stored.rows(0, 1), ElementsAre(1, 2, 2, 1, 1, 2, 1, 2));
  parts.order = stored.checkpoint.at("wrong");
  expect_error(ErrorCode::kFormat, {"'wrong'", "column 3 is in group 2"}, [&] { stored.rows(0, 1); });
}

}  // namespace
}  // namespace coppice::matrix
