#include "coppice/nn/layered_decoder.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "coppice/kernels/head_loss.h"
#include "coppice/nn/build_parameters_detail.h"
#include "coppice/nn/trunk_detail.h"

namespace coppice::nn {

using families::Role;

at::Tensor LoadedLayers::run(const at::Tensor& x_TD, int64_t positions, const ForwardOptions& options,
                             std::vector<LayerRouting>* routing) const {
  return at_border([&] {
    return detail::run_layers({*config_, first_, last_, parameters_, selection_bias_, *angles_, *exchanges_}, x_TD,
                              positions, options, routing);
  });
}

at::Tensor LoadedEmbedding::embed(const at::Tensor& tokens_BS) const {
  return at_border([&] { return detail::embed(*config_, table_VD_, tokens_BS); });
}

at::Tensor LoadedHead::loss(const at::Tensor& x_TD, const at::Tensor& target_T) const {
  return at_border([&] {
    const auto here_T = detail::checked_targets(target_T, head_VD_.size(0), head_VD_.device());
    return kernels::head_loss(detail::to_head(*config_, norm_D_, x_TD), head_VD_, here_T);
  });
}

at::Tensor LoadedHead::token_losses(const at::Tensor& x_TD, const at::Tensor& target_T) const {
  return at_border([&] {
    const at::NoGradGuard no_grad;
    const auto here_T = detail::checked_targets(target_T, head_VD_.size(0), head_VD_.device());
    return kernels::head_token_losses(detail::to_head(*config_, norm_D_, x_TD), head_VD_, here_T);
  });
}

at::Tensor LoadedHead::logits(const at::Tensor& x_TD) const {
  return at_border([&] {
    const at::NoGradGuard no_grad;
    return at::linear(detail::to_head(*config_, norm_D_, x_TD), head_VD_).to(at::kFloat);
  });
}

LayeredDecoder::LayeredDecoder(const families::Model& model, ComputeDtype dtype, at::Device device, Division division)
    : model_(model),
      dtype_(dtype),
      device_(device),
      division_(std::move(division)),
      angles_(std::make_shared<detail::AngleCache>(model.config.rope, device)),
      exchanges_(std::make_shared<const ExpertExchanges>(make_exchanges(division_, device))) {
  detail::check_supported(config());
  slots_.resize(static_cast<size_t>(config().num_layers) + 1);
  for (auto& slot : families::expected_tensors(config())) {
    slots_[slot.layer < 0 ? config().num_layers : slot.layer].push_back(std::move(slot));
  }
}

LayeredDecoder::LayerSize LayeredDecoder::size_of(int64_t layer) const {
  LayerSize size;
  for (const auto& slot : slots_[layer]) {
    uint64_t elements = 1;
    for (const int64_t n : slot.shape) elements *= static_cast<uint64_t>(n);
    (families::is_expert(slot.role()) ? size.expert_elements : size.other_elements) += elements;
  }
  if (const auto placed = division_.placement.find(layer); placed != division_.placement.end()) {
    size.expert_elements = size.expert_elements / static_cast<uint64_t>(placed->second.num_experts()) *
                           static_cast<uint64_t>(placed->second.most_experts());
  }
  return size;
}

LoadedLayers LayeredDecoder::load_layers(int64_t first, int64_t last) const {
  return at_border([&] {
    std::vector<families::TensorSlot> slots;
    for (int64_t layer = first; layer < last; ++layer) std::ranges::copy(slots_[layer], std::back_inserter(slots));
    auto built = detail::build_parameters(config(), dtype_, device_, detail::checkpoint_fill(model_), division_,
                                          std::move(slots));
    LoadedLayers out;
    out.angles_ = angles_;
    out.exchanges_ = exchanges_;
    out.config_ = &config();
    out.first_ = first;
    out.last_ = last;
    out.parameters_ = std::move(built.parameters);
    out.selection_bias_ = std::move(built.selection_bias);
    return out;
  });
}

std::map<Role, at::Tensor> LayeredDecoder::load_outer(std::initializer_list<Role> roles) const {
  return at_border([&] {
    std::vector<families::TensorSlot> slots;
    std::ranges::copy_if(slots_.back(), std::back_inserter(slots),
                         [&](const auto& slot) { return std::ranges::find(roles, slot.role()) != roles.end(); });
    auto built = detail::build_parameters(config(), dtype_, device_, detail::checkpoint_fill(model_), division_,
                                          std::move(slots));
    std::map<Role, at::Tensor> out;
    for (Parameter& p : built.parameters) {
      p.value.set_requires_grad(false);
      out[p.role] = detail::weight_of(p);
    }
    return out;
  });
}

LoadedEmbedding LayeredDecoder::load_embedding() const {
  LoadedEmbedding out;
  out.config_ = &config();
  out.table_VD_ = load_outer({Role::kEmbedding}).at(Role::kEmbedding);
  return out;
}

LoadedHead LayeredDecoder::load_head() const {
  const Role head = config().tied ? Role::kEmbedding : Role::kLmHead;
  auto weights = load_outer({Role::kFinalNorm, head});
  LoadedHead out;
  out.config_ = &config();
  out.norm_D_ = weights.at(Role::kFinalNorm);
  out.head_VD_ = weights.at(head);
  return out;
}

int64_t sequences_a_pass(int64_t positions) {
  constexpr int64_t kTokensAPass = 2048;
  return std::max<int64_t>(1, kTokensAPass / positions);
}

uint64_t segment_bytes(const LayeredDecoder& decoder, const Segment& segment, Purpose purpose) {
  const uint64_t weight = decoder.dtype() == ComputeDtype::kBf16 ? 4 + 2 : 4;
  const uint64_t gradients = purpose == Purpose::kGradients ? 4 * 4 : 0;
  uint64_t bytes = 0;
  for (int64_t layer = segment.first; layer < segment.last; ++layer) {
    const auto size = decoder.size_of(layer);
    bytes += size.other_elements * weight + size.expert_elements * (weight + gradients);
  }
  return bytes;
}

std::vector<Segment> plan_segments(const LayeredDecoder& decoder, int64_t last, uint64_t bytes, Purpose purpose) {
  std::vector<Segment> out;
  for (int64_t end = last; end > 0;) {
    Segment segment{end - 1, end};
    while (segment.first > 0 && segment_bytes(decoder, {segment.first - 1, end}, purpose) <= bytes) --segment.first;
    out.push_back(segment);
    end = segment.first;
  }
  std::ranges::reverse(out);
  return out;
}

}  // namespace coppice::nn
