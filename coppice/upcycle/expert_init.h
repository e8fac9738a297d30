#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/base/rng.h"
#include "coppice/families/family.h"
#include "coppice/upcycle/params.h"

namespace coppice::upcycle {

/// One matrix of one expert, [rows, cols] = [out, in] whatever the file's layout, fp32. Element i counts in that order.
/// A bias is a matrix of one column.
struct ExpertView {
  families::Role role;
  int64_t rows = 0, cols = 0;
  std::span<float> values;

  /// The expert's width f (intermediate units): rows of gate and up, columns of down. Not of down's bias.
  int64_t units() const { return role == families::Role::kExpertDown ? cols : rows; }
  std::span<float> row(int64_t r) const {
    return values.subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols));
  }
};

/// Whose child this is; makes the random streams.
struct ChildKey {
  uint64_t seed = 0;
  int64_t layer = 0;
  uint32_t parent = 0, copy = 1;
  int64_t num_experts = 0;  ///< E

  Rng tensor_rng(families::Role role, uint32_t purpose) const;  ///< own to one matrix
  Rng expert_rng(uint32_t purpose) const;                       ///< shared by the expert's matrices
  uint32_t next() const;                                        ///< the expert after the parent, around the end; E > 1
  uint32_t partner() const;  ///< one of the other E - 1 experts, the same for all of the child's matrices; E > 1
};

/// The same matrix of another original expert, fetched on demand.
using PartnerSource = std::function<std::vector<float>(uint32_t expert)>;

struct ExpertInit {
  std::string_view name;
  /// Turns the parent's values (already in `child`) into the child's.
  void (*apply)(ExpertView child, const ChildKey& key, const PartnerSource& partner, const Params& params);
  /// What the method means for Adam's moments of the same matrix, after the optimizer strategy: moved with the units,
  /// or 0 where redrawn. nullptr: nothing.
  void (*apply_moment)(ExpertView moment, const ChildKey& key, const Params& params);
  std::span<const ParamSpec> params;
  bool same_bytes;              ///< child equals parent byte for byte
  bool same_function;           ///< child computes the parent's function
  bool draws = true;            ///< random: depends on seed and copy number
  bool needs_partner = false;   ///< reads other experts: not for models of one expert
  bool changes_biases = false;  ///< called for the expert's biases too; else a child has its parent's
  std::string_view summary, source;
};
std::span<const ExpertInit> expert_inits();
const ExpertInit& expert_init(std::string_view name);  // Throws Error{kUsage} with the nearest

}  // namespace coppice::upcycle
