#include "coppice/upcycle/expert_content.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/rng.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"

namespace coppice::upcycle {
namespace {

using families::ExpertMatrix;
using families::ExpertPart;
using families::ExpertParts;
using families::Role;
using io::Checkpoint;

constexpr uint64_t kWindowBytes = uint64_t{8} << 20;
constexpr int64_t kSampled = 4096;

void release(const Checkpoint::Entry& entry, uint64_t offset, uint64_t bytes) {
  io::TensorInfo window = *entry.info;
  window.offset += offset;
  window.bytes = bytes;
  entry.file->release(window);
}

/// Rising positions, at random because a stride could stay in one column for ever.
std::vector<uint64_t> sampled_positions(int64_t elements) {
  std::vector<uint64_t> positions(static_cast<size_t>(std::min(elements, kSampled)));
  const Rng rng(RngKey{});
  for (size_t i = 0; i < positions.size(); ++i) {
    positions[i] = elements <= kSampled ? i : rng.below(i, static_cast<uint64_t>(elements));
  }
  std::ranges::sort(positions);
  return positions;
}

/// Adds a matrix to the hash of each unit: rows of gate and up, columns of down.
void hash_units(const ExpertPart& part, const ExpertMatrix& place, std::vector<uint64_t>& hashes) {
  const bool units_are_rows = place.role != Role::kExpertDown;
  const auto width = io::dtype_bytes(part.entry.info->dtype);
  hashes.resize(static_cast<size_t>(units_are_rows ? place.rows : place.cols), 0);
  const std::byte* const expert = part.data().data();
  for (int64_t row = 0; row < place.rows; ++row) {
    for (int64_t col = 0; col < place.cols; ++col) {
      uint64_t value = 0;
      const int64_t at = place.begin + row * place.row_step + col * place.col_step;
      std::memcpy(&value, expert + static_cast<size_t>(at) * width, width);
      uint64_t& hash = hashes[static_cast<size_t>(units_are_rows ? row : col)];
      hash = splitmix64(hash + value);
    }
  }
}

}  // namespace

ExpertDigest expert_digest(const ExpertParts& parts, int64_t layer, int64_t expert) {
  ExpertDigest digest;
  for (const ExpertPart& part : parts.of(layer, expert)) {
    const std::span<const std::byte> data = part.data();
    Sha256 sha;
    for (uint64_t done = 0; done < data.size();) {
      check_interrupt();
      const uint64_t bytes = std::min<uint64_t>(kWindowBytes, data.size() - done);
      sha.add(data.subspan(done, bytes));
      part.release(done, bytes);
      done += bytes;
    }
    digest.of_part.push_back(sha.hex());
  }
  return digest;
}

std::vector<float> expert_sample(const ExpertParts& parts, int64_t layer, int64_t expert) {
  std::vector<float> sample;
  for (const ExpertPart& part : parts.of(layer, expert)) {
    const io::Dtype dtype = part.entry.info->dtype;
    // scales of blocks say nothing of the values, and a bias of zeros or of few values little of its parent
    const bool is_matrix = part.slot->role() != Role::kExpertCompanion && !families::is_bias(part.slot->role());
    if (!io::is_float(dtype) || !is_matrix) continue;
    const auto width = io::dtype_bytes(dtype);
    const std::span<const std::byte> data = part.data();
    for (const uint64_t position : sampled_positions(static_cast<int64_t>(data.size() / width))) {
      io::to_f32(dtype, data.subspan(position * width, width), {&sample.emplace_back(), 1});
    }
    part.release(0, part.slice.bytes);
  }
  return sample;
}

uint64_t unit_signature(const ExpertParts& parts, int64_t layer, int64_t expert) {
  std::vector<uint64_t> hashes;
  const int64_t num_experts = parts.model().config.num_experts;
  for (const ExpertPart& part : parts.of(layer, expert)) {
    const Role role = part.slot->role();
    if (families::is_bias(role)) continue;
    check_interrupt();
    for (const ExpertMatrix& place : families::expert_matrices(*part.slot, num_experts))
      hash_units(part, place, hashes);
    part.release(0, part.slice.bytes);
  }
  uint64_t sum = 0;
  for (const uint64_t hash : hashes) sum += splitmix64(hash);
  return sum;
}

uint64_t value_signature(const ExpertParts& parts, int64_t layer, int64_t expert) {
  uint64_t sum = 0;
  const int64_t num_experts = parts.model().config.num_experts;
  for (const ExpertPart& part : parts.of(layer, expert)) {
    if (families::is_bias(part.slot->role())) continue;
    check_interrupt();
    const auto width = io::dtype_bytes(part.entry.info->dtype);
    const std::byte* const stored = part.data().data();
    for (const ExpertMatrix& place : families::expert_matrices(*part.slot, num_experts)) {
      const auto salt = static_cast<uint64_t>(place.role) << 56;  // a value may not move to another matrix
      for (int64_t row = 0; row < place.rows; ++row) {
        for (int64_t col = 0; col < place.cols; ++col) {
          uint64_t value = 0;
          const int64_t at = place.begin + row * place.row_step + col * place.col_step;
          std::memcpy(&value, stored + static_cast<size_t>(at) * width, width);
          sum += splitmix64(salt + value);
        }
      }
    }
    part.release(0, part.slice.bytes);
  }
  return sum;
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

}  // namespace coppice::upcycle
