#include "coppice/score/router_rows.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/safetensors.h"
#include "coppice/nn/border.h"
#include "coppice/nn/host.h"
#include "coppice/nn/layered_decoder.h"
#include "coppice/score/batches.h"

// T tokens, D model dimension, G clusters.

namespace coppice::score {
namespace {

constexpr std::string_view kRowsPrefix = "router.";

}  // namespace

void check_settings(const families::Model& model, const RouterRowSettings& s) {
  const auto refuse = [](const std::string& message) { throw Error(ErrorCode::kUsage, message); };
  if (model.config.is_moe()) {
    throw Error(ErrorCode::kUnsupported,
                cat(model.checkpoint.directory(), ": a ", model.config.family->model_type,
                    " model has routers already; wanted a dense model that `coppice convert` supports"));
  }
  const auto length = static_cast<uint64_t>(s.sequence_length);
  if (s.sequence_length < 1 || s.sequence_length > model.config.max_positions) {
    refuse(
        cat("sequence-length: ", s.sequence_length, "; wanted 1 to the model's length, ", model.config.max_positions));
  }
  if (s.tokens == 0 || s.tokens % length != 0 || s.tokens > families::kMaxCount) {
    refuse(cat("tokens: ", s.tokens, "; wanted a multiple of the sequence length, ", length, ", up to ",
               families::kMaxCount));
  }
  if (s.clusters < 2 || static_cast<uint64_t>(s.clusters) > s.tokens) {
    refuse(cat("clusters: ", s.clusters, "; wanted at least 2 and at most the number of tokens, ", s.tokens));
  }
  if (!(s.std > 0) || !std::isfinite(s.std)) refuse(cat("std: ", s.std, "; wanted a number above 0"));
}

namespace {

/// The centres minus their mean, scaled so that the logits of x vary over the experts as much as those of random rows
/// of N(0, std).
at::Tensor rows_of(const at::Tensor& x_TD, const at::Tensor& centre_GD, double std) {
  const auto row_GD = centre_GD - centre_GD.mean(0, true);
  const double logits = nn::number(at::mm(x_TD, row_GD.t()).var(1, false).sum(at::kDouble));
  const double random = std * std * nn::number(x_TD.square().sum(at::kDouble));
  return logits > 0 ? row_GD * std::sqrt(random / logits) : row_GD;
}

}  // namespace

std::vector<LayerClusters> cluster_inputs(const families::Model& model, const std::vector<data::TokenFile>& tokens,
                                          const RouterRowSettings& settings) {
  check_settings(model, settings);
  const data::Sampler sampler(tokens, {}, settings.sequence_length, settings.seed);
  const auto total = static_cast<int64_t>(settings.tokens);
  const nn::LayeredDecoder decoder(model, settings.dtype, settings.device, nn::divide(settings.world, model.config));
  const bool alone = decoder.division().num_ranks() == 1;
  const Batches batches{sampler, 0, 1, total / settings.sequence_length, settings.reset_attention, &decoder.division()};
  const at::NoGradGuard no_grad;
  auto passes = batches.passes();
  std::erase_if(passes, [](const Pass& pass) { return !pass.counts; });
  std::vector<at::Tensor> x_TD;  // the input of the current layer, by pass
  nn::at_border([&] {
    const auto embedding = decoder.load_embedding();
    for (const Pass& pass : passes) x_TD.push_back(embedding.embed(batches.read(pass).tokens_BS));
  });
  std::vector<LayerClusters> out;
  const auto input_TD = nn::at_border([&] {
    return at::empty({total, model.config.model_dim}, at::TensorOptions(at::kFloat).device(settings.device));
  });
  Progress progress("cluster", settings.tokens * static_cast<uint64_t>(model.config.num_layers), ProgressUnit::kTokens);
  for (int64_t layer = 0; layer < model.config.num_layers; ++layer) {
    nn::at_border([&] {
      const auto loaded = decoder.load_layers(layer, layer + 1);
      if (!alone) input_TD.zero_();  // the rows of other ranks' windows
      for (size_t p = 0; p < passes.size(); ++p) {
        check_interrupt();
        nn::ForwardOptions forward;
        forward.document_start_BS = batches.document_starts(passes[p]);
        forward.visit_feed_forward = [&](int64_t, const at::Tensor& normed_TD) {
          const auto row = static_cast<int64_t>(passes[p].window) * settings.sequence_length;
          input_TD.narrow(0, row, normed_TD.size(0)).copy_(normed_TD);
        };
        x_TD[p] = loaded.run(x_TD[p], settings.sequence_length, forward);
      }
      if (!alone) settings.world->all().all_reduce(input_TD).wait();
      if (nn::number(input_TD.isfinite().all()) == 0) {
        throw Error(ErrorCode::kNonFinite,
                    cat(model.checkpoint.directory(), ": the input of the feed-forward ", "part of layer ", layer,
                        " has NaN or infinity; wanted a model that computes finite numbers"));
      }
      auto clusters =
          spherical_k_means(input_TD, {.clusters = settings.clusters, .seed = settings.seed, .stream = layer});
      const auto row_GD = rows_of(input_TD, clusters.centre_GD, settings.std);
      out.push_back({row_GD, std::move(clusters)});
    });
    progress.advance(settings.tokens);
  }
  return out;
}

void write_router_rows(const std::filesystem::path& path, const std::vector<LayerClusters>& layers) {
  std::vector<io::TensorInfo> tensors;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    io::TensorInfo info;
    info.name = cat(kRowsPrefix, layer);
    info.dtype = io::Dtype::kF32;
    info.shape = layers[layer].row_GD.sizes().vec();
    tensors.push_back(std::move(info));
  }
  std::string file = io::lay_out(path, std::move(tensors)).header();
  for (const LayerClusters& layer : layers) {
    const auto here_GD = layer.row_GD.to(at::kCPU).contiguous();
    const auto bytes = nn::host_bytes(here_GD);
    file.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  io::write_file_atomically(path, file);
}

bool is_router_rows(const std::filesystem::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  return std::ranges::all_of(file.tensors(), [](const io::TensorInfo& t) { return t.name.starts_with(kRowsPrefix); });
}

}  // namespace coppice::score
