#include "coppice/nn/decoder.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/dist/world.h"
#include "coppice/kernels/head_loss.h"
#include "coppice/nn/build_parameters_detail.h"
#include "coppice/nn/host.h"
#include "coppice/nn/router.h"
#include "coppice/nn/trunk_detail.h"

namespace coppice::nn {

ComputeDtype compute_dtype(std::string_view name) {
  if (name == "f32") return ComputeDtype::kF32;
  if (name == "bf16") return ComputeDtype::kBf16;
  throw Error(ErrorCode::kUsage, cat("dtype: '", name, "'; wanted f32 or bf16"));
}

namespace {

using families::Role;

/// Everything before the output layer.
struct Trunk {
  at::Tensor x_TD;              ///< after the final norm, divided by the divisor of the logits
  at::Tensor head_VD;           ///< weight of the output layer
  at::Tensor aux_loss, z_loss;  ///< scalars; undefined unless requested and there are MoE layers
  std::vector<LayerRouting> routing;
};

Trunk run_trunk(const Decoder& decoder, detail::AngleCache& angles, const ExpertExchanges& exchanges,
                const at::Tensor& tokens_BS, const ForwardOptions& options) {
  const auto& config = decoder.config();
  detail::check_document_starts(options.document_start_BS, tokens_BS);
  const auto before = [&](int64_t layer) {
    if (options.before_layer) options.before_layer(layer);
  };
  const auto outer = [&](Role role) { return detail::weight_of(find_parameter(decoder.parameters(), role)); };
  const auto& world = decoder.division().world;
  dist::Group* const all = world && world->size() > 1 ? &world->all() : nullptr;
  Trunk out;
  detail::BalanceTerms terms;
  before(-1);
  const auto x_TD = detail::run_layers(
      {config, 0, config.num_layers, decoder.parameters(), decoder.selection_bias(), angles, exchanges, all},
      detail::embed(config, outer(Role::kEmbedding), tokens_BS), tokens_BS.size(1), options, &out.routing, &terms);
  if (!terms.layers.empty()) {
    out.aux_loss = balancing_loss(terms.layers, tokens_BS.numel(), config.top_k, options.balance_form);
  }
  if (terms.z_loss.defined()) out.z_loss = terms.z_loss / static_cast<double>(out.routing.size());
  before(config.num_layers);
  out.x_TD = detail::to_head(config, outer(Role::kFinalNorm), x_TD);
  out.head_VD = outer(config.tied ? Role::kEmbedding : Role::kLmHead);
  return out;
}

}  // namespace

Decoder::Decoder(families::ModelConfig config, ComputeDtype dtype, const TensorFill& fill, at::Device device,
                 Division division, const KeepMasters& keep)
    : config_(std::move(config)),
      dtype_(dtype),
      device_(device),
      angles_(std::make_shared<detail::AngleCache>(config_.rope, device)) {
  detail::check_supported(config_);
  set_division(std::move(division));
  at_border([&] {
    auto built =
        detail::build_parameters(config_, dtype, device, fill, division_, families::expected_tensors(config_), keep);
    parameters_ = std::move(built.parameters);
    selection_bias_ = std::move(built.selection_bias);
  });
}

Decoder Decoder::load(const families::Model& model, ComputeDtype dtype, at::Device device, Division division,
                      const KeepMasters& keep) {
  return Decoder(model.config, dtype, detail::checkpoint_fill(model), device, std::move(division), keep);
}

void Decoder::set_division(Division division) {
  division_ = std::move(division);
  exchanges_ = std::make_shared<const ExpertExchanges>(make_exchanges(division_, device_));
}

at::Tensor Decoder::logits(const at::Tensor& tokens_BS, const ForwardOptions& options,
                           std::vector<LayerRouting>* routing) const {
  return at_border([&] {
    auto trunk = run_trunk(*this, *angles_, *exchanges_, tokens_BS, options);
    if (routing) *routing = std::move(trunk.routing);
    return at::linear(trunk.x_TD, trunk.head_VD).to(at::kFloat).view({tokens_BS.size(0), tokens_BS.size(1), -1});
  });
}

LossOutput Decoder::loss(const at::Tensor& tokens_BS, const at::Tensor& target_BS,
                         const ForwardOptions& options) const {
  COPPICE_CHECK(tokens_BS.sizes() == target_BS.sizes());
  return at_border([&] {
    auto trunk = run_trunk(*this, *angles_, *exchanges_, tokens_BS, options);
    LossOutput out;
    out.loss = kernels::head_loss(trunk.x_TD, trunk.head_VD,
                                  detail::checked_targets(target_BS.reshape({-1}), config_.vocab_size, device_));
    out.token_loss = out.loss.detach();
    if (trunk.aux_loss.defined()) {
      out.aux_loss = trunk.aux_loss.detach();
      out.loss = out.loss + options.aux_loss_coef * trunk.aux_loss;
    }
    if (trunk.z_loss.defined()) {
      out.z_loss = trunk.z_loss.detach();
      out.loss = out.loss + options.z_loss_coef * trunk.z_loss;
    }
    out.routing = std::move(trunk.routing);
    return out;
  });
}

at::Tensor Decoder::sequence_loss(const at::Tensor& tokens_BS, const at::Tensor& target_BS,
                                  const ForwardOptions& options, at::Tensor& counts_B,
                                  std::vector<LayerRouting>* routing) const {
  COPPICE_CHECK(tokens_BS.sizes() == target_BS.sizes());
  return at_border([&] {
    at::NoGradGuard no_grad;
    if (tokens_BS.size(0) == 0) {
      auto unused = run_trunk(*this, *angles_, *exchanges_, at::zeros({1, tokens_BS.size(1)}, at::kLong), {}).routing;
      for (LayerRouting& layer : unused) detail::clear_sums(layer);
      if (routing) *routing = std::move(unused);
      counts_B = at::empty({0}, at::kLong);
      return at::empty({0}, at::TensorOptions(at::kDouble).device(device_));
    }
    auto trunk = run_trunk(*this, *angles_, *exchanges_, tokens_BS, options);
    if (routing) *routing = std::move(trunk.routing);
    const auto loss_T = kernels::head_token_losses(
        trunk.x_TD, trunk.head_VD, detail::checked_targets(target_BS.reshape({-1}), config_.vocab_size, device_));
    counts_B = target_BS.ge(0).sum(1);
    return loss_T.view(target_BS.sizes()).to(at::kDouble).sum(1);
  });
}

void Decoder::visit(const std::function<void(const families::TensorSlot&, std::span<const float>)>& visitor) const {
  std::unordered_map<std::string_view, std::pair<const Parameter*, const Parameter::Slice*>> places;
  for (const Parameter& p : parameters_) {
    for (const auto& slice : p.slices) places[slice.slot.name] = {&p, &slice};
  }
  const auto show = [&](const families::TensorSlot& slot, const at::Tensor& tensor) {
    visitor(slot, host_values<float>(on_host(tensor)));
  };
  for (const auto& slot : families::expected_tensors(config_)) {
    if (slot.role() == Role::kSelectionBias) {
      show(slot, selection_bias_.at(slot.layer));
      continue;
    }
    if (const auto found = places.find(slot.name); found != places.end()) {
      const auto& [parameter, slice] = found->second;
      const at::Tensor values = slice->of(parameter->master);
      const auto& own = parameter->experts;
      if (slot.expert >= 0 || own.empty() || std::ssize(own) == config_.num_experts) {
        show(slot, values);
        continue;
      }
      families::TensorSlot part = slot;  // of a stack
      for (size_t i = 0; i < own.size(); ++i) {
        part.expert = own[i];
        show(part, values[static_cast<int64_t>(i)]);
      }
    } else if (std::ranges::find(slot.shape, 0) != slot.shape.end()) {
      visitor(slot, {});
    } else {
      COPPICE_CHECK(slot.expert >= 0 && !division_.placement.empty(), slot.name);  // another rank's
    }
  }
}

const Parameter& find_parameter(const std::vector<Parameter>& parameters, Role role, int64_t layer) {
  for (const Parameter& p : parameters) {
    if (p.role == role && p.layer == layer) return p;
  }
  throw Error(ErrorCode::kInternal,
              cat("no parameter is '", role_name(role), "' of layer ", layer, " (a bug in coppice, please report it)"));
}

}  // namespace coppice::nn
