#include "coppice/score/layered_pass.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <optional>

#include "coppice/base/check.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/memory.h"
#include "coppice/nn/border.h"

// B sequences per pass, S positions, T = B * S tokens, D model dimension.

namespace coppice::score {
namespace {

// Blocks of memory that a segment holds over several passes.
constexpr uint64_t kHeldBytes = 256 << 10;

// The smallest block that a pass maps from the system: gradients of experts, which outlive the pass, and larger blocks.
uint64_t passing_bytes(const nn::LayeredDecoder& decoder, const Segment& segment) {
  uint64_t bytes = 32 << 20;
  for (int64_t layer = segment.first; layer < segment.last; ++layer) {
    const uint64_t down = decoder.size_of(layer).expert_elements / 3 * sizeof(float);
    if (down > 0) bytes = std::min(bytes, std::max<uint64_t>(down, 1 << 20));
  }
  return bytes;
}

// For the estimate of the time left: a backward pass costs a forward pass plus about twice that.
constexpr double kForward = 1, kBackward = 3;

}  // namespace

LayeredPass::LayeredPass(const nn::LayeredDecoder& decoder, const Batches& batches, Planes& activations,
                         Planes& gradients)
    : decoder_(decoder),
      batches_(batches),
      activations_(activations),
      gradients_(gradients),
      passes_(batches.passes()),
      progress_("score", static_cast<uint64_t>(batches.rows()), ProgressUnit::kTokens) {
  const auto& is_moe = decoder.config().moe_layer;
  lowest_moe_ = std::ranges::find(is_moe, true) - is_moe.begin();
}

void LayeredPass::run(int64_t last, uint64_t segment_bytes, bool has_moments, const Done& done) {
  const auto segments = nn::plan_segments(decoder_, last, segment_bytes, nn::Purpose::kGradients);
  is_whole_ = segments.size() == 1;
  shares_ = 0;
  for (const Segment& s : segments) {
    const auto layers = static_cast<double>(s.last - s.first);
    shares_ += layers * (kForward * (s.last != last) + kBackward * (s.last > lowest_moe_));
  }
  for (const Segment& segment : segments) {
    if (segment.last != last) nn::at_border([&] { forward(segment); });
  }
  for (size_t i = segments.size(); i-- > 0 && segments[i].last > lowest_moe_;) {
    nn::at_border([&] { backward(segments[i], has_moments, done); });
  }
}

// Advances the progress bar by a share of one layer in one pass.
void LayeredPass::advance(double share) {
  share_left_over_ += share / shares_;
  const auto whole = static_cast<uint64_t>(share_left_over_);
  progress_.advance(whole);
  share_left_over_ -= static_cast<double>(whole);
}

at::Tensor LayeredPass::input(const Pass& pass, const Segment& segment, const nn::LoadedEmbedding* embedding) const {
  const int64_t rows = pass.windows * batches_.sampler.sequence_length();
  if (embedding == nullptr) return activations_.read(segment.first, pass.row, rows);
  return embedding->embed(batches_.read(pass).tokens_BS);
}

void LayeredPass::forward(const Segment& segment) {
  const auto layers_in = static_cast<double>(segment.last - segment.first);
  const double all = static_cast<double>(batches_.rows()) * layers_in * kForward;
  if (activations_.has(segment.last)) return advance(all);
  const at::NoGradGuard no_grad;
  take_blocks_from_system(kHeldBytes);
  std::optional<nn::LoadedEmbedding> embedding;
  if (segment.first == 0) embedding = decoder_.load_embedding();
  const auto layers = decoder_.load_layers(segment.first, segment.last);
  const int64_t length = batches_.sampler.sequence_length();
  activations_.begin(segment.last);
  take_blocks_from_system(passing_bytes(decoder_, segment));
  for (const Pass& pass : passes_) {
    check_interrupt();
    const at::Tensor x_TD = input(pass, segment, embedding ? &*embedding : nullptr);
    activations_.write(pass.row, layers.run(x_TD, length, {.document_start_BS = batches_.document_starts(pass)}));
    advance(static_cast<double>(pass.windows * length) * layers_in * kForward);
  }
  activations_.finish();
}

void LayeredPass::backward_from_loss(const Pass& pass, const nn::LoadedHead& head, const at::Tensor& x_TD) {
  batches_.backward(pass, head.loss(x_TD, batches_.read(pass).target_BS.view({-1})), losses_);
}

void LayeredPass::backward(const Segment& segment, bool has_moments, const Done& done) {
  const auto& config = decoder_.config();
  const bool at_top = segment.last == config.num_layers, goes_on = segment.first > lowest_moe_;
  if (!is_whole_) take_blocks_from_system(kHeldBytes);
  std::optional<nn::LoadedEmbedding> embedding;
  if (segment.first == 0) embedding = decoder_.load_embedding();
  std::optional<nn::LoadedHead> head;
  if (at_top) head = decoder_.load_head();
  auto layers = decoder_.load_layers(segment.first, segment.last);
  for (nn::Parameter& p : layers.parameters()) p.value.set_requires_grad(is_scored(p));
  SumsByLayer sums = begin_sums(config, layers.parameters(), segment.first, segment.last, has_moments);
  const int64_t length = batches_.sampler.sequence_length();
  if (goes_on) gradients_.begin(segment.first);
  if (!is_whole_) take_blocks_from_system(passing_bytes(decoder_, segment));
  for (const Pass& pass : passes_) {
    check_interrupt();
    const at::Tensor x_TD = input(pass, segment, embedding ? &*embedding : nullptr).set_requires_grad(goes_on);
    std::vector<nn::LayerRouting> routing;
    const nn::ForwardOptions forward{.with_output_sq = true, .document_start_BS = batches_.document_starts(pass)};
    const at::Tensor y_TD = layers.run(x_TD, length, forward, &routing);
    if (at_top) {
      backward_from_loss(pass, *head, y_TD);
    } else {
      y_TD.backward(gradients_.read(segment.last, pass.row, y_TD.size(0)));
    }
    if (goes_on) gradients_.write(pass.row, x_TD.grad());
    end_pass(sums, routing, pass.ends_batch);
    advance(static_cast<double>(pass.windows * length * (segment.last - segment.first)) * kBackward);
  }
  losses_.finish();
  if (goes_on) gradients_.finish();
  done(segment, sums);
  gradients_.remove(segment.last);
  activations_.remove(segment.first);
}

}  // namespace coppice::score
