#pragma once

#include <filesystem>
#include <memory>

#include "coppice/dist/world.h"
#include "coppice/io/atomic_file.h"
#include "coppice/save/checkpoint.h"

namespace coppice::save {

/// A checkpoint that all ranks write together, into one directory on a file system that they share. It appears complete
/// or not at all.
///
/// Ranks    making and `commit` are collective over those of the model's division, in the thread that trains; `write`
///          is each rank's own.
class SharedCheckpoint {
 public:
  /// Copies what this rank writes, and makes the files: rank 0 first, then the others open them.
  ///
  /// Throws   on every rank what one of them throws (dist::all_or_none).
  SharedCheckpoint(std::filesystem::path target, const nn::Decoder& model, const step::Optimizer& optimizer,
                   TrainerState state, Companions companions);

  /// Writes this rank's part.
  ///
  /// Threads  any, once; it does not communicate.
  /// Throws   Error{kIo}, Error{kNonFinite}.
  void write();
  /// After `write` on every rank, or its error: rank 0 gives the directory its name. If one rank failed (`own`, null: it
  /// did not), nothing is left.
  ///
  /// Throws   as all_or_none.
  void commit(const std::exception_ptr& own);

 private:
  bool is_first() const { return division_.world->rank() == 0; }

  std::filesystem::path target_;
  nn::Division division_;
  SavedState saved_;
  TrainerState state_;
  Companions companions_;
  std::unique_ptr<io::AtomicDirectory> directory_;  // on rank 0
  std::unique_ptr<CheckpointFiles> files_;
  uint64_t bytes_ = 0;  // of tensors, written by this rank
};

}  // namespace coppice::save
