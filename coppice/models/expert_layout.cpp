#include "coppice/models/expert_layout.h"

#include <algorithm>
#include <cstring>

#include "coppice/base/check.h"

namespace coppice::models {

using families::Layout;
using families::Role;
using families::TensorSlot;

namespace {

constexpr int64_t kTile = 32;  // rows and columns moved at a time if one of the two layouts has a stride

// Copies in tiles, so that neither side is read with a long stride for more than a tile.
template <class Move>
void for_each_element(const ExpertMatrix& m, const Move& move) {
  for (int64_t row0 = 0; row0 < m.rows; row0 += kTile) {
    for (int64_t col0 = 0; col0 < m.cols; col0 += kTile) {
      for (int64_t row = row0; row < std::min(row0 + kTile, m.rows); ++row) {
        for (int64_t col = col0; col < std::min(col0 + kTile, m.cols); ++col) {
          move(static_cast<size_t>(row * m.cols + col),
               static_cast<size_t>(m.begin + row * m.row_step + col * m.col_step));
        }
      }
    }
  }
}

// With the width as a constant, the compiler copies an element by one instruction.
template <class Copy>
void with_width(size_t width, const Copy& copy) {
  switch (width) {
    case 1: return copy(std::integral_constant<size_t, 1>{});
    case 2: return copy(std::integral_constant<size_t, 2>{});
    case 4: return copy(std::integral_constant<size_t, 4>{});
    case 8: return copy(std::integral_constant<size_t, 8>{});
    default: COPPICE_CHECK(false, "elements of ", width, " bytes");
  }
}

Role gate_of(Role fused) { return fused == Role::kExpertGateUp ? Role::kExpertGate : Role::kExpertGateBias; }
Role up_of(Role fused) { return fused == Role::kExpertGateUp ? Role::kExpertUp : Role::kExpertUpBias; }

}  // namespace

std::vector<ExpertMatrix> expert_matrices(const TensorSlot& slot, int64_t num_experts) {
  const Role role = slot.role();
  if (is_copied_whole(role)) return {};
  COPPICE_CHECK(is_expert(role), slot.name);
  const Layout layout = slot.rule->layout;
  std::vector<int64_t> shape = slot.shape;
  if (layout.stacked) {
    if (shape.size() == (is_bias(role) ? 2u : 3u)) {
      shape.erase(shape.begin());
    } else {
      shape.front() /= num_experts;  // [experts * out, in]
    }
  }
  COPPICE_CHECK(shape.size() == (is_bias(role) ? 1u : 2u), slot.name);
  ExpertMatrix whole{
      .role = role, .rows = shape[0], .cols = is_bias(role) ? 1 : shape[1], .row_step = 1, .col_step = 1};
  if (layout.transposed && !is_bias(role)) {
    std::swap(whole.rows, whole.cols);
    whole.col_step = whole.rows;
  } else {
    whole.row_step = whole.cols;
  }
  if (role != Role::kExpertGateUp && role != Role::kExpertGateUpBias) return {whole};

  ExpertMatrix gate = whole, up = whole;
  gate.role = gate_of(role);
  up.role = up_of(role);
  gate.rows = up.rows = whole.rows / 2;
  up.begin = layout.interleaved ? whole.row_step : gate.rows * whole.row_step;
  if (layout.interleaved) gate.row_step = up.row_step = 2 * whole.row_step;
  return {gate, up};
}

void gather(const ExpertMatrix& place, size_t width, std::span<const std::byte> expert, std::span<std::byte> matrix) {
  COPPICE_CHECK(matrix.size() == static_cast<size_t>(place.rows * place.cols) * width);
  if (place.is_contiguous()) {
    std::memcpy(matrix.data(), expert.subspan(static_cast<size_t>(place.begin) * width, matrix.size()).data(),
                matrix.size());
    return;
  }
  with_width(width, [&](auto w) {
    for_each_element(
        place, [&](size_t at, size_t stored) { std::memcpy(matrix.data() + at * w, expert.data() + stored * w, w); });
  });
}

void scatter(const ExpertMatrix& place, size_t width, std::span<const std::byte> matrix, std::span<std::byte> expert) {
  COPPICE_CHECK(matrix.size() == static_cast<size_t>(place.rows * place.cols) * width);
  if (place.is_contiguous()) {
    std::memcpy(expert.subspan(static_cast<size_t>(place.begin) * width, matrix.size()).data(), matrix.data(),
                matrix.size());
    return;
  }
  with_width(width, [&](auto w) {
    for_each_element(
        place, [&](size_t at, size_t stored) { std::memcpy(expert.data() + stored * w, matrix.data() + at * w, w); });
  });
}

ExpertSlice expert_slice(const TensorSlot& slot, uint64_t tensor_bytes, int64_t num_experts, int64_t expert) {
  if (!slot.rule->layout.stacked) return {0, tensor_bytes};
  const uint64_t bytes = tensor_bytes / static_cast<uint64_t>(num_experts);
  return {bytes * static_cast<uint64_t>(expert), bytes};
}

}  // namespace coppice::models
