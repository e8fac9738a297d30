#pragma once

// Router rows for converting a dense model: cluster centres of its own activations.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "coppice/data/token_file.h"
#include "coppice/dist/world.h"
#include "coppice/families/match.h"
#include "coppice/nn/decoder.h"
#include "coppice/score/spherical_k_means.h"

namespace coppice::score {

struct RouterRowSettings {
  int64_t clusters = 0;     ///< G: rows per router, one for each virtual group or each expert
  uint64_t tokens = 16384;  ///< a multiple of sequence_length
  int64_t sequence_length = 256;
  bool reset_attention = false;  ///< attention stays within a document
  double std = 0.02;             ///< logits vary as much as those of random rows with this standard deviation
  uint64_t seed = 0;             ///< random seed of the windows and of the first centres
  nn::ComputeDtype dtype = nn::ComputeDtype::kF32;
  at::Device device{at::kCPU};
  std::shared_ptr<dist::World> world = {};  ///< ranks that share the passes through the model; null: this one
};

/// Throws   what cluster_inputs throws because of model or settings, before any work.
void check_settings(const families::Model& model, const RouterRowSettings& settings);

struct LayerClusters {
  at::Tensor row_GD;  ///< f32: the centres minus their mean, times a factor
  Clusters clusters;
};

/// Clusters the inputs of the feed-forward part of every layer. The rows rank the clusters of each token as the centres
/// do, because the mean of the centres adds the same to all logits.
///
/// Ranks    collective over all ranks of `world`: each computes the inputs of its own windows, all get those of all, and
///          each clusters them, with the same result.
/// Memory   one layer's weights, and twice [tokens, D] f32; on `device`.
/// Throws   Error{kUnsupported}: a model with experts, or one that `nn` does not support; Error{kUsage}: sizes that do
///          not fit; Error{kNonFinite}; Error{kInterrupted}.
std::vector<LayerClusters> cluster_inputs(const families::Model& model, const std::vector<data::TokenFile>& tokens,
                                          const RouterRowSettings& settings);

/// A safetensors file with `router.LAYER` [G, D] f32 for each layer, as methods::RouterRows reads it. The file appears
/// complete or not at all.
void write_router_rows(const std::filesystem::path& path, const std::vector<LayerClusters>& layers);

/// Whether write_router_rows wrote the file. Throws what io::SafetensorsFile::open throws.
bool is_router_rows(const std::filesystem::path& path);

}  // namespace coppice::score
