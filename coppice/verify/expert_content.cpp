#include "coppice/verify/expert_content.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "coppice/base/interrupt.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"

namespace coppice::verify {
namespace {

using families::Role;
using io::Checkpoint;
using models::ExpertMatrix;
using models::ExpertTensor;
using models::ExpertTensors;

constexpr uint64_t kWindowBytes = uint64_t{8} << 20;
constexpr int64_t kSampled = 4096;
constexpr int64_t kShortest = 4;  ///< number of elements from which rows or columns are not equal by chance

void release(const Checkpoint::Entry& entry, uint64_t offset, uint64_t bytes) {
  io::TensorInfo window = *entry.info;
  window.offset += offset;
  window.bytes = bytes;
  entry.file->release(window);
}

/// Rising positions, chosen at random because a fixed stride could stay in one column.
std::vector<uint64_t> sampled_positions(int64_t elements) {
  std::vector<uint64_t> positions(static_cast<size_t>(std::min(elements, kSampled)));
  const Rng rng(RngKey{});
  for (size_t i = 0; i < positions.size(); ++i)
    positions[i] = elements <= kSampled ? i : rng.below(i, static_cast<uint64_t>(elements));
  std::ranges::sort(positions);
  return positions;
}

uint64_t mixed(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 29);
}

double factor_of(const ExpertMatrixRef& matrix, const ExpertFactors& factors) {
  if (matrix.role == Role::kExpertDown) return factors.down;
  return matrix.role == Role::kExpertDownBias ? factors.down_bias : 1.0;
}

uint32_t short_hash(uint64_t hash, uint64_t bits) {
  return bits == 0 ? 0 : static_cast<uint32_t>(splitmix64(hash)) | 1u;
}

template <class Width>
MatrixContent hashes(std::span<const std::byte> bytes, int64_t rows, int64_t cols) {
  MatrixContent content;
  const auto width = static_cast<size_t>(cols);
  std::vector<uint64_t> of_col(width, 1), bits_of_col(width, 0);
  const std::byte* at = bytes.data();
  for (int64_t row = 0; row < rows; ++row) {
    uint64_t of_row = 1, bits_of_row = 0;
    for (size_t col = 0; col < width; ++col, at += sizeof(Width)) {
      Width value{};
      std::memcpy(&value, at, sizeof value);
      of_row = mixed(of_row, value);
      bits_of_row |= value;
      of_col[col] = mixed(of_col[col], value);
      bits_of_col[col] |= value;
    }
    content.hash = mixed(content.hash, splitmix64(of_row));
    content.row_hashes.push_back(short_hash(of_row, bits_of_row));
  }
  for (size_t col = 0; col < width; ++col) content.col_hashes.push_back(short_hash(of_col[col], bits_of_col[col]));
  return content;
}

int64_t count_equal(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  int64_t equal = 0;
  for (size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i] ? 1 : 0;
  return equal;
}
/// The number of equal lines that are not all zeros.
int64_t count_telling(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  int64_t equal = 0;
  for (size_t i = 0; i < a.size(); ++i) equal += a[i] != 0 && a[i] == b[i] ? 1 : 0;
  return equal;
}

bool same_in_any_order(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  const auto sum = [](const std::vector<uint32_t>& hashes) {
    uint64_t all = 0;
    for (const uint32_t hash : hashes) all += hash;
    return all;
  };
  if (sum(a) != sum(b) || sum(a) == 0) return false;
  std::vector<uint32_t> x = a, y = b;
  std::ranges::sort(x);
  std::ranges::sort(y);
  return x == y;
}

}  // namespace

std::vector<ExpertMatrixRef> matrices_of(const ExpertTensors& tensors, int64_t layer, int64_t expert) {
  std::vector<ExpertMatrixRef> out;
  const int64_t experts = tensors.model().config.num_experts;
  for (const ExpertTensor& tensor : tensors.of(layer, expert)) {
    const std::string name =
        tensor.slot->expert >= 0 ? tensor.slot->name.str() : cat(tensor.slot->name, "[", expert, "]");
    const auto places = models::expert_matrices(*tensor.slot, experts);
    for (const ExpertMatrix& place : places) out.push_back({tensor, place, place.role, name});
    if (places.empty()) out.push_back({tensor, {}, tensor.slot->role(), name});
  }
  std::ranges::stable_sort(out, {}, &ExpertMatrixRef::role);
  return out;
}

std::vector<std::byte> stored_bytes(const ExpertMatrixRef& matrix, const ExpertFactors& factors) {
  check_interrupt();
  const std::span<const std::byte> data = matrix.tensor.data();
  const io::Dtype dtype = matrix.tensor.entry.info->dtype;
  std::vector<std::byte> out(data.size());
  if (matrix.is_matrix()) {
    const size_t width = io::dtype_bytes(dtype);
    out.resize(static_cast<size_t>(matrix.place.rows * matrix.place.cols) * width);
    models::gather(matrix.place, width, data, out);
    if (const double factor = factor_of(matrix, factors); factor != 1 && io::is_float(dtype)) {
      std::vector<float> values(out.size() / width);
      io::to_f32(dtype, out, values);
      for (float& x : values) x = static_cast<float>(factor * x);
      io::from_f32(dtype, values, out);
    }
  } else {
    std::ranges::copy(data, out.begin());
  }
  matrix.tensor.release(0, matrix.tensor.slice.bytes);
  return out;
}

MatrixContent content_of(const ExpertMatrixRef& matrix, const ExpertFactors& factors) {
  const std::vector<std::byte> bytes = stored_bytes(matrix, factors);
  if (!matrix.is_matrix()) {
    MatrixContent content = hashes<uint8_t>(bytes, 1, static_cast<int64_t>(bytes.size()));
    content.row_hashes.clear();
    content.col_hashes.clear();
    return content;
  }
  const int64_t rows = matrix.place.rows, cols = matrix.place.cols;
  MatrixContent content;
  switch (io::dtype_bytes(matrix.tensor.entry.info->dtype)) {
    case 1: content = hashes<uint8_t>(bytes, rows, cols); break;
    case 2: content = hashes<uint16_t>(bytes, rows, cols); break;
    case 4: content = hashes<uint32_t>(bytes, rows, cols); break;
    default: content = hashes<uint64_t>(bytes, rows, cols); break;
  }
  content.elements = rows * cols;
  return content;
}

LikenessOf likeness(const MatrixContent& child, const MatrixContent& original) {
  if (child.hash == original.hash) return {.kind = Likeness::kEqual, .share = 1};
  const auto rows = static_cast<int64_t>(child.row_hashes.size()), cols = static_cast<int64_t>(child.col_hashes.size());
  LikenessOf out{.kind = Likeness::kNone, .rows_changed = rows, .cols_changed = cols};
  if (rows == 0 || child.row_hashes.size() != original.row_hashes.size() ||
      child.col_hashes.size() != original.col_hashes.size())
    return out;
  out.rows_changed = rows - count_equal(child.row_hashes, original.row_hashes);
  out.cols_changed = cols - count_equal(child.col_hashes, original.col_hashes);
  const auto share_of = [](int64_t count, int64_t all) {
    return static_cast<double>(count) / static_cast<double>(all);
  };
  const double by_cols = rows < kShortest ? 0 : share_of(count_telling(child.col_hashes, original.col_hashes), cols);
  const double by_rows = cols < kShortest ? 0 : share_of(count_telling(child.row_hashes, original.row_hashes), rows);
  out.share = std::max(by_cols, by_rows);
  out.by_columns = same_in_any_order(child.col_hashes, original.col_hashes);
  if (out.by_columns || same_in_any_order(child.row_hashes, original.row_hashes)) {
    out.kind = Likeness::kReordered;
  } else if (out.share > 0) {
    out.kind = by_cols >= by_rows ? Likeness::kColumns : Likeness::kRows;
  }
  return out;
}

std::vector<float> sample_of(const ExpertMatrixRef& matrix, const ExpertFactors& factors) {
  const io::Dtype dtype = matrix.tensor.entry.info->dtype;
  if (!io::is_float(dtype) || !matrix.is_matrix()) return {};
  const std::vector<std::byte> bytes = stored_bytes(matrix, factors);
  const auto width = io::dtype_bytes(dtype);
  std::vector<float> sample;
  for (const uint64_t position : sampled_positions(static_cast<int64_t>(bytes.size() / width)))
    io::to_f32(dtype, std::span(bytes).subspan(position * width, width), {&sample.emplace_back(), 1});
  return sample;
}

bool is_finite(const ExpertMatrixRef& matrix) {
  const io::Dtype dtype = matrix.tensor.entry.info->dtype;
  if (!io::is_float(dtype)) return true;
  const std::vector<std::byte> bytes = stored_bytes(matrix);
  std::vector<float> values(bytes.size() / io::dtype_bytes(dtype));
  io::to_f32(dtype, bytes, values);
  return std::ranges::all_of(values, [](float x) { return std::isfinite(x); });
}

double norm(std::span<const float> values) {
  double sum = 0;
  for (const float x : values) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

double cosine(std::span<const float> a, std::span<const float> b) {
  double dot = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = a[i], y = b[i];
    dot += x * y;
    aa += x * x;
    bb += y * y;
  }
  if (aa == 0 || bb == 0) return aa == bb ? 1.0 : 0.0;
  return dot / std::sqrt(aa * bb);
}

bool same_tensor(const Checkpoint::Entry& a, const Checkpoint::Entry& b) {
  if (a.info->dtype != b.info->dtype || a.info->shape != b.info->shape) return false;
  const std::span<const std::byte> x = a.data(), y = b.data();
  for (uint64_t done = 0; done < x.size();) {
    check_interrupt();
    const uint64_t bytes = std::min<uint64_t>(kWindowBytes, x.size() - done);
    const bool same = std::memcmp(x.data() + done, y.data() + done, bytes) == 0;
    release(a, done, bytes);
    release(b, done, bytes);
    if (!same) return false;
    done += bytes;
  }
  return true;
}

}  // namespace coppice::verify
