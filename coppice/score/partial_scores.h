#pragma once

#include <cstdint>
#include <optional>

#include "coppice/families/match.h"
#include "coppice/io/partial_directory.h"
#include "coppice/plan/utility.h"
#include "coppice/score/score.h"

namespace coppice::score {

/// What a run of `score` has done so far, in a directory beside its output: the layers' scores from the top down, and
/// the planes that going on from there needs.
class PartialScores {
 public:
  /// Continues an earlier run of the same work where `settings.resume` says so; else what is there is removed.
  /// Throws   what io::PartialDirectory throws; Error{kFormat} for a state that is damaged.
  PartialScores(const families::Model& model, const plan::Scores& begun, const ScoreSettings& settings);

  std::filesystem::path directory() const { return directory_.path(); }
  /// The scores of layers [layers_left, all).
  const std::optional<plan::Scores>& scores() const { return scores_; }
  int64_t layers_left() const { return layers_left_; }

  /// Remembers the scores of all layers from `layers_left` on; the planes must be on the disk.
  void save(const plan::Scores& scores, int64_t layers_left);
  /// The result is written elsewhere: the directory goes away with this.
  void discard() { directory_.discard(); }

 private:
  io::PartialDirectory directory_;
  std::optional<plan::Scores> scores_;
  int64_t layers_left_;
};

}  // namespace coppice::score
