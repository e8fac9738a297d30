#include "coppice/nn/fitted_decoder.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "coppice/base/check.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/memory.h"
#include "coppice/dist/world.h"
#include "coppice/nn/device_memory.h"
#include "coppice/nn/host.h"
#include "coppice/nn/trunk_detail.h"

namespace coppice::nn {
namespace {

// Memory   that is held over several passes.
constexpr uint64_t kHeld = 256 << 10, kPassing = 32 << 20;

// Adds the routing of another pass.
void add_routing(std::vector<LayerRouting>& sum, std::vector<LayerRouting> pass) {
  for (LayerRouting& layer : pass) {
    const auto found = std::ranges::find(sum, layer.layer, &LayerRouting::layer);
    if (found == sum.end()) {
      sum.push_back(std::move(layer));
    } else {
      found->count_E = found->count_E + layer.count_E;
      found->balance_count = found->balance_count + layer.balance_count;
      found->gate_mass_E = found->gate_mass_E + layer.gate_mass_E;
    }
  }
}

// The options for a pass over `count` of the sequences.
ForwardOptions of_sequences(ForwardOptions options, int64_t first, int64_t count, int64_t positions) {
  options.first_token += static_cast<uint64_t>(first * positions);
  if (options.document_start_BS.defined())
    options.document_start_BS = options.document_start_BS.narrow(0, first, count);
  return options;
}

}  // namespace

FittedDecoder::FittedDecoder(const families::Model& model, ComputeDtype dtype, uint64_t max_memory_bytes,
                             at::Device device, Division division)
    : decoder_(model, dtype, device, std::move(division)) {
  double limit = -static_cast<double>(max_memory_bytes > 0 ? max_memory_bytes : memory_of(device).total / 2);
  decoder_.division().max_over_ranks({&limit, 1});
  const auto all = static_cast<uint64_t>(-limit);
  segments_ = plan_segments(decoder_, config().num_layers, all / 2, Purpose::kForward);
  uint64_t largest = 0;
  for (const Segment& s : segments_) largest = std::max(largest, segment_bytes(decoder_, s, Purpose::kForward));
  activation_bytes_ = all - std::min(all, largest);
  if (segments_.size() == 1) {
    whole_ = {decoder_.load_embedding(), decoder_.load_layers(0, config().num_layers), decoder_.load_head()};
  }
}

int64_t FittedDecoder::sequences_at_once(int64_t positions, int64_t wanted) const {
  if (is_whole()) return wanted;
  const int64_t a_sequence = positions * config().model_dim * (decoder_.dtype() == ComputeDtype::kBf16 ? 2 : 4);
  return std::max(sequences_a_pass(positions), static_cast<int64_t>(activation_bytes_) / a_sequence);
}

int64_t FittedDecoder::num_passes(int64_t sequences, int64_t a_pass) const {
  const int64_t own = (sequences + a_pass - 1) / a_pass;
  if (!division().is_joint()) return own;
  const auto most = at::full({1}, own, at::TensorOptions(at::kLong).device(decoder_.device()));
  division().world->experts().all_reduce(most, dist::Reduce::kMax).wait();
  return static_cast<int64_t>(number(most));
}

void FittedDecoder::visit_outputs(const at::Tensor& tokens_BS, const ForwardOptions& options, const Visit& visit,
                                  std::vector<LayerRouting>* routing) const {
  COPPICE_CHECK(!options.keep_routing && !options.with_output_sq);  // these are of a single pass
  const at::NoGradGuard no_grad;
  detail::check_document_starts(options.document_start_BS, tokens_BS);
  const int64_t sequences = tokens_BS.size(0), positions = tokens_BS.size(1);
  const int64_t a_pass = sequences_a_pass(positions);
  std::vector<int64_t> firsts;  // of each pass; those from `sequences` on do not count
  for (int64_t b = 0, passes = num_passes(sequences, a_pass); std::ssize(firsts) < passes; b += a_pass)
    firsts.push_back(b);
  const auto embed = [&](const LoadedEmbedding& embedding, int64_t first) {
    if (first >= sequences) return embedding.embed(at::zeros({1, positions}, at::kLong));
    return embedding.embed(tokens_BS.narrow(0, first, std::min(a_pass, sequences - first)).contiguous());
  };
  const auto run = [&](const LoadedLayers& layers, int64_t first, const at::Tensor& x_TD) {
    check_interrupt();
    std::vector<LayerRouting> of_pass;
    const bool counts = first < sequences;
    const auto forward = counts ? of_sequences(options, first, x_TD.size(0) / positions, positions) : ForwardOptions();
    auto out_TD = layers.run(x_TD, positions, forward, routing ? &of_pass : nullptr);
    if (!counts) std::ranges::for_each(of_pass, detail::clear_sums);
    if (routing) add_routing(*routing, std::move(of_pass));
    return out_TD;
  };
  const auto show = [&](int64_t first, const LoadedHead& head, const at::Tensor& x_TD) {
    if (first < sequences) visit(first, head, x_TD);
  };
  if (whole_) {
    for (const int64_t first : firsts)
      show(first, whole_->head, run(whole_->layers, first, embed(whole_->embedding, first)));
    return;
  }
  std::vector<at::Tensor> x_TD;
  take_blocks_from_system(kHeld);
  {
    const auto embedding = decoder_.load_embedding();
    for (const int64_t first : firsts) x_TD.push_back(embed(embedding, first));
  }
  for (const Segment& segment : segments_) {
    take_blocks_from_system(kHeld);
    const auto layers = decoder_.load_layers(segment.first, segment.last);
    take_blocks_from_system(kPassing);
    for (size_t i = 0; i < firsts.size(); ++i) x_TD[i].copy_(run(layers, firsts[i], x_TD[i]));
  }
  const auto head = decoder_.load_head();
  for (size_t i = 0; i < firsts.size(); ++i) show(firsts[i], head, x_TD[i]);
}

at::Tensor FittedDecoder::token_losses(const at::Tensor& tokens_BS, const at::Tensor& target_BS,
                                       const ForwardOptions& options, std::vector<LayerRouting>* routing) const {
  COPPICE_CHECK(tokens_BS.sizes() == target_BS.sizes());
  const int64_t positions = tokens_BS.size(1);
  const auto loss_BS = at::empty(tokens_BS.sizes(), at::TensorOptions().dtype(at::kFloat).device(decoder_.device()));
  const auto visit = [&](int64_t first, const LoadedHead& head, const at::Tensor& x_TD) {
    const int64_t count = x_TD.size(0) / positions;
    const auto target_T = target_BS.narrow(0, first, count).reshape({-1});
    loss_BS.narrow(0, first, count).copy_(head.token_losses(x_TD, target_T).view({count, positions}));
  };
  visit_outputs(tokens_BS, options, visit, routing);
  return loss_BS;
}

at::Tensor FittedDecoder::sequence_loss(const at::Tensor& tokens_BS, const at::Tensor& target_BS,
                                        const ForwardOptions& options, at::Tensor& counts_B,
                                        std::vector<LayerRouting>* routing) const {
  counts_B = target_BS.ge(0).sum(1);
  return token_losses(tokens_BS, target_BS, options, routing).to(at::kDouble).sum(1);
}

}  // namespace coppice::nn
