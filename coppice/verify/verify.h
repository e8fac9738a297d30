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

/// What of copies that were recognised by content is only like the parent's.
struct OnlyAlike {
  int64_t matrices = 0;       ///< some values are equal or near
  int64_t column_orders = 0;  ///< matrices with the same columns in another order
  int64_t router_rows = 0;    ///< near
  int64_t biases = 0;         ///< of experts and routers
};

/// What became of every tensor between two checkpoints.
struct VerifyResult {
  bool ok = false;
  std::string made_by;    ///< what makes the model after again, tensor by tensor; empty: parents were found by content
  int64_t identical = 0;  ///< tensors outside experts and routers, bit-identical
  int64_t experts_original = 0;  ///< expert tensors that are a parent's, byte for byte
  int64_t experts_changed = 0;   ///< expert tensors that derive from a parent but differ
  int64_t experts_before = 0, experts_after = 0;
  int64_t top_k_factor = 1;                         ///< a token is routed to so many times more experts
  int64_t split = 1;                                ///< every expert is so many of the expanded model's
  int64_t router_rows_equal = 0;                    ///< router rows that are the parent's, byte for byte
  int64_t router_rows_changed = 0;                  ///< router rows near the parent's, or made again
  int64_t biases_changed = 0;                       ///< router and selection biases that differ from the parent's
  double largest_bias_change = 0;                   ///< of those, where they were not made again
  std::map<int64_t, std::vector<int64_t>> parents;  ///< layer -> [N]; -1 = no parent recognised
  /// Copies found by content, by what their parent was recognised by (the order of Likeness).
  std::array<int64_t, 5> copies_by_likeness{};
  OnlyAlike only_alike;
  int64_t unknown_experts = 0, unknown_rows = 0;  ///< those in `not_recognised`
  double smallest_cosine = 1;             ///< of a matrix that was recognised by sampled values, to its parent's
  int64_t optimizer_tensors = 0;          ///< of trainer/, made again and equal
  int64_t files_equal = 0;                ///< files beside the weights that are those of the model before
  int64_t tensors_changed = 0;            ///< that are not what was made again
  std::vector<std::string> not_compared;  ///< what there was nothing to compare with
  std::vector<std::string>
      not_recognised;                 ///< copies and router rows of which content does not tell whether they are right
  std::vector<std::string> problems;  ///< each a sentence naming a tensor, a key or a file; empty if ok

  /// One sentence: ok and what was not looked at, or how much is wrong.
  std::string verdict() const;
  Json to_json() const;
};

/// The sentence of a check with these findings.
std::string verdict_of(const std::vector<std::string>& problems, const std::vector<std::string>& not_compared);

/// Accounts for every tensor of `after`, its optimizer state, configuration and the files beside the weights.
///
/// Where the newest expansion in its coppice.json started from `before`, or the newest expansion of `before` was undone, or
/// experts were split, everything is made again and compared byte for byte. Else parents are found by content: originals
/// are there bit for bit, with their router rows and biases, and every other expert is recognised matrix by matrix
/// (recognise.h). Configurations are compared by what they say (config.h).
///
/// Memory   what making a piece needs, or recognise_layer.
/// Threads  the same result for any number.
/// Throws   Error{kInterrupted, kIo}; Error{kFormat} for a coppice.json that is none; what is wrong with `after` is in
///          `problems`.
VerifyResult verify(const families::Model& before, const families::Model& after, size_t threads);

}  // namespace coppice::verify
