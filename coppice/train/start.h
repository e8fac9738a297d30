#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "coppice/save/checkpoint.h"
#include "coppice/train/options.h"

namespace coppice::train {

/// The model and state that a run starts from.
struct Start {
  nn::Decoder model;
  step::Optimizer optimizer;
  step::Position position;
  save::Companions companions;
  std::string tokenizer_digest;               ///< empty: unknown
  std::optional<save::TrainerState> resumed;  ///< state of the checkpoint in the run's own directory
};

/// The model that the options ask for: `resume_from` if given, else model.path (with its trainer/ if train.start is
/// `continue`), else random weights N(0, 0.02) of model.family, keyed by train.seed. Model and optimizer state are on
/// `device`, and divided over `world` (null: one rank).
///
/// Ranks    each reads its own part; nothing is communicated.
/// Throws   Error{kUsage, kNotFound, kFormat, kShape, kNonFinite, kUnsupported}.
Start make_start(const TrainOptions& options, const std::optional<std::filesystem::path>& resume_from,
                 at::Device device, const std::shared_ptr<dist::World>& world);

}  // namespace coppice::train
