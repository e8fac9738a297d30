#pragma once

// Router rows for a dense model that is to become a Mixture of Experts: directions that its own tokens gather around.

#include <cstdint>
#include <filesystem>
#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/families/match.h"
#include "coppice/nn/decoder.h"
#include "coppice/score/spherical_k_means.h"

namespace coppice::score {

struct RouterRowSettings {
  int64_t clusters = 0;     ///< G: rows of each router, one for each virtual group or for each expert
  uint64_t tokens = 16384;  ///< a multiple of sequence_length
  int64_t sequence_length = 256;
  bool reset_attention = false;  ///< documents in a window do not see each other
  double std = 0.02;             ///< logits spread as much as those of random rows of this standard deviation
  uint64_t seed = 0;             ///< of the windows and of the first centres
  nn::ComputeDtype dtype = nn::ComputeDtype::kF32;
};

/// Throws   what cluster_inputs throws of model and settings, before any work.
void check_settings(const families::Model& model, const RouterRowSettings& settings);

struct LayerClusters {
  at::Tensor row_GD;  ///< f32: the centres less their mean, times a factor
  Clusters clusters;
};

/// Clusters what enters the feed-forward part of every layer. The rows give each token the order of clusters that the
/// centres do: their mean adds the same to all logits.
///
/// Memory   one layer's weights, and twice [tokens, D] f32.
/// Throws   Error{kUnsupported}: a model with experts, or one that cannot be computed; Error{kUsage}: sizes that do not
///          fit; Error{kNonFinite}; Error{kInterrupted}.
std::vector<LayerClusters> cluster_inputs(const families::Model& model, const std::vector<data::TokenFile>& tokens,
                                          const RouterRowSettings& settings);

/// A safetensors file with `router.LAYER` [G, D] f32 for each layer, as methods::RouterRows reads it. Appears whole or
/// not at all.
void write_router_rows(const std::filesystem::path& path, const std::vector<LayerClusters>& layers);

/// Whether a file is one of write_router_rows. Throws what io::SafetensorsFile::open throws.
bool is_router_rows(const std::filesystem::path& path);

}  // namespace coppice::score
