#pragma once

// What an expert holds, in forms that show whose child it is without any record of how it was made.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "coppice/families/expert_parts.h"

namespace coppice::upcycle {

/// SHA-256 of the bytes of each of the expert's parts, in the order of families::ExpertParts.
///
/// Memory   a window of 8 MiB; pages are released as they were read.
struct ExpertDigest {
  std::vector<std::string> of_part;
  auto operator<=>(const ExpertDigest&) const = default;
};
ExpertDigest expert_digest(const families::ExpertParts& parts, int64_t layer, int64_t expert);

/// Up to 4,096 entries of each part of numbers, at positions that depend on the part's size alone: the same for every
/// expert. Empty if the expert has no part of F32, BF16 or F16.
std::vector<float> expert_sample(const families::ExpertParts& parts, int64_t layer, int64_t expert);

/// A number that any order of the expert's units leaves the same: a sum over units of a hash of gate row, up row and
/// down column.
uint64_t unit_signature(const families::ExpertParts& parts, int64_t layer, int64_t expert);

/// The same for any order of the values within each of the expert's matrices: a sum of their hashes.
uint64_t value_signature(const families::ExpertParts& parts, int64_t layer, int64_t expert);

/// Cosine of two vectors, accumulated in fp64. Two zero vectors: 1; one of them: 0; NaN where a value is.
double cosine(std::span<const float> a, std::span<const float> b);

/// True if both tensors have the same dtype, shape and bytes.
///
/// Memory   a window of 8 MiB of each.
bool same_tensor(const io::Checkpoint::Entry& a, const io::Checkpoint::Entry& b);

}  // namespace coppice::upcycle
