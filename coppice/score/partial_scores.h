#pragma once

#include <cstdint>
#include <optional>

#include "coppice/families/match.h"
#include "coppice/io/partial_directory.h"
#include "coppice/plan/utility.h"
#include "coppice/score/score.h"

namespace coppice::score {

/// The finished work of a run of `score`, in a directory beside its output: the layers' scores from the top down, and
/// the planes that are needed to continue. Each of several ranks has a directory of its own.
class PartialScores {
 public:
  /// Continues an earlier run of the same work if `settings.resume` is set; otherwise removes its files, and those that a
  /// killed run on another number of ranks has left.
  ///
  /// Ranks    collective: all continue after the same layer, the last one that all had saved, with its scores.
  /// Throws   what io::PartialDirectory throws; Error{kFormat} for a damaged state.
  PartialScores(const families::Model& model, const plan::Scores& begun, const ScoreSettings& settings);

  std::filesystem::path directory() const { return directory_.path(); }
  /// The scores of layers [layers_left, all).
  const std::optional<plan::Scores>& scores() const { return scores_; }
  int64_t layers_left() const { return layers_left_; }

  /// Saves the scores of all layers from `layers_left` on; the planes must be on the disk. What was needed to continue
  /// after the save before may be removed afterwards.
  ///
  /// Ranks    collective: all have saved when it returns.
  void save(const plan::Scores& scores, int64_t layers_left);
  /// Removes the directory, because the result has been written elsewhere.
  void discard() { directory_.discard(); }

 private:
  void read_state(int64_t layers);
  void agree();

  std::shared_ptr<dist::World> world_;  // null: one rank
  io::PartialDirectory directory_;
  std::optional<plan::Scores> scores_;
  int64_t layers_left_;
};

}  // namespace coppice::score
