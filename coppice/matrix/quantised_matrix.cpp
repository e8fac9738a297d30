#include "coppice/matrix/quantised_matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/checkpoint.h"
#include "coppice/matrix/finite.h"

namespace coppice::matrix {
namespace {

using families::QuantisedTensor;
using families::ValueCode;
using io::Dtype;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kWordBits = 32;

/// The number that an 8-bit float stands for.
///
/// Source   E4M3 and E5M2 of arXiv:2209.05433: E4M3 has no infinities and one NaN of each sign.
float float8(uint8_t bits, int mantissa_bits, int bias, bool has_infinities) {
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int exponent = (bits & 0x7f) >> mantissa_bits;
  const int top = 0x7f >> mantissa_bits;
  const float sign = (bits & 0x80) != 0 ? -1.0F : 1.0F;
  if (has_infinities && exponent == top) return mantissa == 0 ? sign * std::numeric_limits<float>::infinity() : kNan;
  if (!has_infinities && (bits & 0x7f) == 0x7f) return kNan;
  const int whole = exponent == 0 ? mantissa : mantissa + (1 << mantissa_bits);
  return sign * std::ldexp(static_cast<float>(whole), (exponent == 0 ? 1 : exponent) - bias - mantissa_bits);
}

using Table = std::array<float, 256>;

template <class Value>
Table table_of(const Value& value) {
  Table table{};
  for (size_t i = 0; i < table.size(); ++i) table[i] = value(static_cast<uint8_t>(i));
  return table;
}

const Table& e4m3() {
  static const Table kTable = table_of([](uint8_t b) { return float8(b, 3, 7, false); });
  return kTable;
}
const Table& e5m2() {
  static const Table kTable = table_of([](uint8_t b) { return float8(b, 2, 15, true); });
  return kTable;
}
const Table& int8() {
  static const Table kTable = table_of([](uint8_t b) { return static_cast<float>(static_cast<int8_t>(b)); });
  return kTable;
}
const Table& exponents() {
  static const Table kTable = table_of([](uint8_t b) { return b == 0xff ? kNan : std::ldexp(1.0F, b - 127); });
  return kTable;
}
constexpr std::array<float, 16> kFloat4 = {0.0F,  0.5F,  1.0F,  1.5F,  2.0F,  3.0F,  4.0F,  6.0F,
                                           -0.0F, -0.5F, -1.0F, -1.5F, -2.0F, -3.0F, -4.0F, -6.0F};

/// The dtypes of scales: floats as they are; E4M3; powers of two.
void read_scales(Dtype dtype, std::span<const std::byte> bytes, std::span<float> out) {
  if (io::is_float(dtype)) return io::to_f32(dtype, bytes, out);
  const Table& table = dtype == Dtype::kF8E4M3 ? e4m3() : exponents();
  for (size_t i = 0; i < out.size(); ++i) out[i] = table[static_cast<uint8_t>(bytes[i])];
}

std::vector<std::byte> bytes_of(const io::Checkpoint::Entry& entry, uint64_t offset, uint64_t bytes) {
  std::vector<std::byte> out(bytes);
  entry.file->read(entry.info->offset + offset, out);
  return out;
}

uint32_t word_at(std::span<const std::byte> bytes, size_t index) {
  uint32_t word = 0;
  std::memcpy(&word, bytes.data() + index * sizeof word, sizeof word);
  return word;
}

/// The `index`-th packed value of `bits` bits (a divisor of 32) among words that lie `step` apart.
int packed_value(std::span<const std::byte> words, size_t index, int bits, size_t step, size_t first) {
  const size_t in_word = static_cast<size_t>(kWordBits / bits);
  const uint32_t word = word_at(words, first + index / in_word * step);
  const uint32_t mask = (uint32_t{1} << bits) - 1;
  return static_cast<int>((word >> (index % in_word * static_cast<size_t>(bits))) & mask) - (1 << (bits - 1));
}

/// Reads one matrix of a quantised tensor.
class Reader {
 public:
  Reader(const QuantisedTensor& tensor, int64_t index) : t_(tensor), index_(static_cast<uint64_t>(index)) {
    row_bytes_ = t_.values.info->bytes / static_cast<uint64_t>(t_.count * t_.rows);
    cols_ = static_cast<size_t>(t_.cols);
    if (t_.global_scale.file != nullptr) {
      const auto& info = *t_.global_scale.info;
      const uint64_t width = info.bytes / static_cast<uint64_t>(info.elements());
      std::array<float, 1> value{};
      read_scales(info.dtype, bytes_of(t_.global_scale, t_.global_of_matrix ? index_ * width : 0, width), value);
      global_ = value[0];
    }
    if (t_.order.file != nullptr) {
      const auto bytes = bytes_of(t_.order, 0, t_.order.info->bytes);
      for (size_t i = 0; i < cols_; ++i) block_of_col_.push_back(word_at(bytes, i));
      constexpr uint32_t kNotSet = 0xffffffff;  // as compressed-tensors marks an order that was not set
      if (std::ranges::find(block_of_col_, kNotSet) != block_of_col_.end()) block_of_col_.clear();
      const auto wrong = std::ranges::find_if(block_of_col_, [this](uint32_t block) { return block >= scale_cols(); });
      if (wrong != block_of_col_.end()) {
        throw Error(ErrorCode::kFormat, cat("'", t_.order.info->name, "': column ", wrong - block_of_col_.begin(),
                                            " is in group ", *wrong, "; wanted one below ", t_.scale_cols));
      }
    }
  }

  /// Rows first, first + step ... of the stored matrix.
  void read(int64_t first, int64_t step, std::span<float> out) const {
    const auto count = static_cast<int64_t>(out.size() / cols_);
    const int64_t last = first + (count - 1) * step;
    const auto values =
        bytes_of(t_.values, (index_ * static_cast<uint64_t>(t_.rows) + static_cast<uint64_t>(first)) * row_bytes_,
                 static_cast<uint64_t>(last - first + 1) * row_bytes_);
    const int64_t first_scale = first / t_.block_rows;
    const std::vector<float> scales = scale_rows(first_scale, last / t_.block_rows);
    const Zeros zeros = zero_rows(first, last);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = first + i * step;
      const auto to = out.subspan(static_cast<size_t>(i) * cols_, cols_);
      const auto from = std::span(values).subspan(static_cast<size_t>(row - first) * row_bytes_, row_bytes_);
      decode(from, to);
      const auto scale_row = static_cast<size_t>(row / t_.block_rows - first_scale);
      scale(std::span(scales).subspan(scale_row * scale_cols(), scale_cols()), zeros, row, to);
    }
  }

 private:
  struct Zeros {
    std::vector<std::byte> bytes;
    int64_t first_row = 0;  // of the words or values
  };

  size_t scale_cols() const { return static_cast<size_t>(t_.scale_cols); }

  std::vector<float> scale_rows(int64_t first, int64_t last) const {
    const io::TensorInfo& info = *t_.scales.info;
    const uint64_t width = info.bytes / static_cast<uint64_t>(info.elements());
    const uint64_t matrix = t_.scales_for_all ? 0 : index_ * static_cast<uint64_t>(t_.scale_rows);
    const auto count = static_cast<uint64_t>(last - first + 1) * scale_cols();
    std::vector<float> scales(count);
    const uint64_t begin = (matrix + static_cast<uint64_t>(first)) * scale_cols() * width;
    read_scales(info.dtype, bytes_of(t_.scales, begin, count * width), scales);
    if (t_.global_scale.file != nullptr) {
      for (float& s : scales) s = t_.global_divides ? s / global_ : s * global_;
    }
    return scales;
  }

  bool zeros_are_packed() const { return t_.zero_points.info->dtype == Dtype::kI32; }

  Zeros zero_rows(int64_t first, int64_t last) const {
    if (t_.zero_points.file == nullptr) return {};
    const int64_t rows = zeros_are_packed() ? kWordBits / t_.bits : t_.block_rows;
    const uint64_t row_bytes = scale_cols() * (zeros_are_packed() ? sizeof(uint32_t) : 1);
    const auto begin = static_cast<uint64_t>(first / rows), end = static_cast<uint64_t>(last / rows) + 1;
    return {bytes_of(t_.zero_points, begin * row_bytes, (end - begin) * row_bytes), static_cast<int64_t>(begin)};
  }

  float zero_of(const Zeros& zeros, int64_t row, size_t block) const {
    if (zeros_are_packed()) {
      const int64_t first = zeros.first_row * (kWordBits / t_.bits);
      return static_cast<float>(
          packed_value(zeros.bytes, static_cast<size_t>(row - first), t_.bits, scale_cols(), block));
    }
    const auto at = static_cast<size_t>(row / t_.block_rows - zeros.first_row) * scale_cols() + block;
    return static_cast<float>(static_cast<int8_t>(zeros.bytes[at]));
  }

  void decode(std::span<const std::byte> from, std::span<float> to) const {
    if (t_.code == ValueCode::kFloat4) {
      for (size_t c = 0; c < to.size(); ++c) {
        const auto byte = static_cast<uint8_t>(from[c / 2]);
        to[c] = kFloat4[c % 2 == 0 ? byte & 0xfU : byte >> 4U];
      }
      return;
    }
    if (t_.code == ValueCode::kPackedInt) {
      for (size_t c = 0; c < to.size(); ++c) to[c] = static_cast<float>(packed_value(from, c, t_.bits, 1, 0));
      return;
    }
    const Table& table = t_.code == ValueCode::kFloat8E4M3   ? e4m3()
                         : t_.code == ValueCode::kFloat8E5M2 ? e5m2()
                                                             : int8();
    for (size_t c = 0; c < to.size(); ++c) to[c] = table[static_cast<uint8_t>(from[c])];
  }

  void scale(std::span<const float> scales, const Zeros& zeros, int64_t row, std::span<float> values) const {
    const bool has_zeros = t_.zero_points.file != nullptr;
    if (!block_of_col_.empty()) {
      for (size_t c = 0; c < values.size(); ++c) {
        const size_t block = block_of_col_[c];
        const float zero = has_zeros ? zero_of(zeros, row, block) : 0;
        values[c] = (values[c] - zero) * scales[block];
      }
      return;
    }
    const auto width = static_cast<size_t>(t_.block_cols);
    for (size_t block = 0, begin = 0; begin < values.size(); ++block, begin += width) {
      const auto part = values.subspan(begin, std::min(width, values.size() - begin));
      if (has_zeros) {
        const float zero = zero_of(zeros, row, block);
        for (float& x : part) x -= zero;
      }
      for (float& x : part) x *= scales[block];
    }
  }

  const QuantisedTensor& t_;
  const uint64_t index_;
  uint64_t row_bytes_ = 0;
  size_t cols_ = 0;
  float global_ = 1;
  std::vector<uint32_t> block_of_col_;
};

}  // namespace

MatrixRows quantised_rows(const QuantisedTensor& tensor, int64_t index, const models::ExpertMatrix& place,
                          bool is_transposed) {
  const auto reader = std::make_shared<const Reader>(tensor, index);
  COPPICE_CHECK(place.cols == tensor.cols, tensor.values.info->name);
  const int64_t begin = is_transposed ? place.begin : place.first_row();
  const int64_t step = is_transposed ? place.row_step : place.row_stride();
  std::string subject = tensor.is_stack ? cat("'", tensor.values.info->name, "', expert ", index)
                                        : cat("'", tensor.values.info->name, "'");
  const auto read = [reader, begin, step](int64_t first, std::span<float> out) {
    reader->read(begin + first * step, step, out);
  };
  return only_finite({place.role, place.rows, place.cols, read}, std::move(subject));
}

models::ExpertMatrix whole_matrix(families::Role role, int64_t rows, int64_t cols) {
  return {.role = role, .rows = rows, .cols = cols, .row_step = cols, .col_step = 1};
}

}  // namespace coppice::matrix
