#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/families/match.h"

namespace coppice::verify {

/// Parts of copies recognised by content that are only similar to the parent's.
struct OnlyAlike {
  int64_t matrices = 0;       ///< matrices with some equal or similar values
  int64_t column_orders = 0;  ///< matrices with the same columns in another order
  int64_t router_rows = 0;    ///< similar rows
  int64_t biases = 0;         ///< of experts and routers
};

/// The result of comparing two checkpoints.
struct VerifyResult {
  bool ok = false;
  std::string quantisation;  ///< of the model before; empty if it is not quantised
  std::string made_by;    ///< what recomputes the model after, tensor by tensor; empty: parents were found by content
  int64_t identical = 0;  ///< tensors outside experts and routers, bit-identical
  int64_t experts_original = 0;  ///< expert tensors byte-equal to a parent's
  int64_t experts_changed = 0;   ///< expert tensors that derive from a parent but differ
  int64_t experts_before = 0, experts_after = 0;
  int64_t top_k_factor = 1;                         ///< factor of top-K
  int64_t split = 1;                                ///< number of parts that every expert is cut into
  int64_t router_rows_equal = 0;                    ///< router rows byte-equal to the parent's
  int64_t router_rows_changed = 0;                  ///< router rows similar to the parent's, or recomputed
  int64_t biases_changed = 0;                       ///< router and selection biases that differ from the parent's
  double largest_bias_change = 0;                   ///< largest change of a bias that was not recomputed
  std::map<int64_t, std::vector<int64_t>> parents;  ///< layer -> [N]; -1 = no parent recognised
  /// Copies found by content, by the criterion that recognised their parent (in the order of Likeness).
  std::array<int64_t, 5> copies_by_likeness{};
  OnlyAlike only_alike;
  int64_t unknown_experts = 0, unknown_rows = 0;  ///< those in `not_recognised`
  double smallest_cosine = 1;             ///< smallest cosine of a matrix recognised by sampled values and its parent's
  int64_t optimizer_tensors = 0;          ///< tensors of trainer/, recomputed and equal
  int64_t files_equal = 0;                ///< files beside the weights that equal those of the model before
  int64_t tensors_changed = 0;            ///< tensors that differ from what was recomputed
  std::vector<std::string> not_compared;  ///< what could not be compared
  std::vector<std::string>
      not_recognised;                 ///< copies and router rows whose content does not show whether they are right
  std::vector<std::string> problems;  ///< each a sentence naming a tensor, a key or a file; empty if ok

  /// One sentence: ok and what was not compared, or the number of problems.
  std::string verdict() const;
  Json to_json() const;
};

/// The verdict of a check with these findings.
std::string verdict_of(const std::vector<std::string>& problems, const std::vector<std::string>& not_compared);

/// The model that the newest expansion of `after` started from: `before`, or its values in bf16 if the lineage says that
/// they were dequantised.
///
/// Throws   as grow::dequantised and plan::newest_growth.
families::Model as_expanded(families::Model before, const families::Model& after);

/// Checks every tensor of `after`, its optimizer state, its configuration and the files beside the weights.
///
/// Everything is recomputed and compared byte for byte if the newest expansion in the coppice.json of `after` started
/// from `before`, if the newest expansion of `before` was undone, or if experts were split. Otherwise parents are found
/// by content: originals must be bit-equal, with their router rows and biases, and every other expert is recognised
/// matrix by matrix (recognise.h). Configurations are compared by meaning (config.h).
///
/// Memory   that of computing a piece, or of recognise_layer.
/// Threads  the result does not depend on the number of threads.
/// Throws   Error{kInterrupted, kIo}; Error{kFormat} for a coppice.json that is not a lineage; problems of `after` are
///          in `problems`.
VerifyResult verify(const families::Model& before, const families::Model& after, size_t threads);

}  // namespace coppice::verify
