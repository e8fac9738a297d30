#pragma once

// A checkpoint: a Hugging Face model directory whose trainer/ has the state that training needs to continue.

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "coppice/base/json.h"
#include "coppice/families/match.h"
#include "coppice/nn/decoder.h"
#include "coppice/save/saved_state.h"
#include "coppice/save/trainer_state.h"
#include "coppice/step/optimizer.h"

namespace coppice::save {

/// The contents of a checkpoint besides weights and optimizer state.
struct Companions {
  std::map<std::string, std::string> files;  ///< tokenizer files: name, contents
  std::optional<Json> lineage;               ///< coppice.json
};

/// Writes `saved`, a whole state, as the checkpoint `target`: bf16 where the model computes in bf16, else f32, the
/// selection bias always f32; then trainer/.
///
/// Memory   one tensor at a time, also of a model on a device.
/// Throws   Error{kIo}: disk full ...; Error{kNonFinite} naming a tensor with values that are not finite in the file's
///          dtype; no files remain then.
void write_checkpoint(const std::filesystem::path& target, const SavedState& saved, const TrainerState& state,
                      const Companions& companions);

/// The process's part in files that several write.
enum class FileRole { kAlone, kMaker, kJoined };

/// The tensors of a checkpoint on disk while they are written, by one process or by several on a shared file system:
/// then one makes the files, the others join afterwards, and each writes its part.
class CheckpointFiles {
 public:
  /// `target` is for messages; the files are in `directory`.
  ///
  /// Throws   Error{kIo}.
  CheckpointFiles(const std::filesystem::path& target, const std::filesystem::path& directory,
                  const families::ModelConfig& config, nn::ComputeDtype dtype, FileRole role);
  ~CheckpointFiles();
  CheckpointFiles(CheckpointFiles&&) noexcept;

  /// Bytes of all tensors.
  static uint64_t bytes_of(const families::ModelConfig& config, nn::ComputeDtype dtype);
  /// Throws   as write_checkpoint.
  void write(const SavedState& saved);
  /// Brings the files to the disk; returns the number of bytes of tensors that this process has written. Of several
  /// processes these must add up to `bytes_of`.
  uint64_t finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Writes what is in a checkpoint besides tensors.
void write_companions(const std::filesystem::path& directory, const families::ModelConfig& config,
                      nn::ComputeDtype dtype, const TrainerState& state, const Companions& companions);

struct Restored {
  nn::Decoder model;  ///< from the fp32 masters
  step::Optimizer optimizer;
};
/// Loads the state from which training continues to `device`, tensor by tensor; on several ranks this rank's part, from a
/// checkpoint of any number of ranks.
///
/// Memory   several ranks: besides the state, one parameter.
/// Throws   Error{kNotFound} if the checkpoint has no trainer/; Error{kFormat, kShape, kNonFinite} naming the tensor.
Restored load_checkpoint(const families::Model& model, nn::ComputeDtype dtype, at::Device device = at::kCPU,
                         const nn::Division& division = {});

}  // namespace coppice::save
