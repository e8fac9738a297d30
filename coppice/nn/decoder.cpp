#include "coppice/nn/decoder.h"

#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>

#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/kernels/head_loss.h"
#include "coppice/kernels/rms_norm.h"
#include "coppice/nn/block_detail.h"
#include "coppice/nn/build_parameters_detail.h"
#include "coppice/nn/rotary_detail.h"
#include "coppice/nn/router.h"
#include "coppice/nn/trunk_detail.h"

namespace coppice::nn {

namespace detail {

void check_supported(const families::ModelConfig& config) {
  if (!config.unsupported_in_nn.empty()) {
    throw Error(ErrorCode::kUnsupported, cat("config.json: the model has ", join(config.unsupported_in_nn),
                                             ", which this build cannot compute (inspect and expand still work)"));
  }
}

void check_tokens(const at::Tensor& tokens_BS, int64_t vocabulary) {
  COPPICE_CHECK(tokens_BS.dim() == 2 && tokens_BS.scalar_type() == at::kLong && tokens_BS.is_contiguous());
  const auto* const token = tokens_BS.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens_BS.numel(); ++i) {
    if (token[i] >= 0 && token[i] < vocabulary) continue;
    throw Error(ErrorCode::kFormat,
                cat("token id ", token[i], " at position ", i, ": is outside the vocabulary; wanted ids below ",
                    vocabulary, " (check that the data was tokenized for this model)"));
  }
}

TensorFill checkpoint_fill(const families::Model& model) {
  return [&model](const families::TensorSlot& slot, std::span<float> values) {
    const auto entry = model.checkpoint.at(slot.name);
    if (!io::is_float(entry.info->dtype)) {
      throw Error(ErrorCode::kShape,
                  cat(entry.file->path(), ": '", slot.name, "' is ", io::dtype_name(entry.info->dtype),
                      "; wanted F32, BF16 or F16 (dequantize the checkpoint first)"));
    }
    io::to_f32(entry.info->dtype, entry.data(), values);
    entry.file->release(*entry.info);
  };
}

void check_document_starts(const at::Tensor& start_BS, const at::Tensor& tokens_BS) {
  if (!start_BS.defined()) return;
  COPPICE_CHECK(start_BS.sizes() == tokens_BS.sizes() && start_BS.scalar_type() == at::kLong);
  COPPICE_CHECK(start_BS.is_contiguous());
  const int64_t positions = start_BS.size(1);
  for (int64_t b = 0; b < start_BS.size(0); ++b) {
    const auto* const start = start_BS.const_data_ptr<int64_t>() + b * positions;
    for (int64_t s = 0; s < positions; ++s) {
      COPPICE_CHECK(start[s] == s || (s > 0 && start[s] == start[s - 1]), "document start ", start[s], " at ", s);
    }
  }
}

at::Tensor weight_of(const Parameter& parameter) {
  return parameter.slices.front().slot.rule->centred ? parameter.value.to(at::kFloat) + 1 : parameter.value;
}

void set_rotary_angles(BlockContext& context) {
  std::tie(context.cos_SR, context.sin_SR) = rotary_angles(context.config->rope, context.positions);
  if (!context.start_BS.defined()) return;
  // Positions restart with each document, so there are angles per token instead of per position.
  const auto position_T = (at::arange(context.positions, at::kLong) - context.start_BS).view({-1});
  context.cos_SR = context.cos_SR.index_select(0, position_T);
  context.sin_SR = context.sin_SR.index_select(0, position_T);
}

// In transformers the square root is a buffer with the model's dtype; other multipliers are numbers.
double embedding_multiplier(const families::ModelConfig& config, at::ScalarType dtype) {
  const double exact = config.embedding_multiplier;
  if (!config.family->multipliers.sqrt_embedding || dtype != at::kBFloat16) return exact;
  return static_cast<double>(static_cast<float>(at::BFloat16(static_cast<float>(exact))));
}

at::Tensor embed(const families::ModelConfig& config, const at::Tensor& table_VD, const at::Tensor& tokens_BS) {
  // Computed through f32, so that the gradient of a frequent token is summed in f32 and rounded once.
  auto x_TD = at::embedding(table_VD.to(at::kFloat), tokens_BS.view({-1}));
  if (config.embedding_multiplier != 1) x_TD = x_TD * embedding_multiplier(config, table_VD.scalar_type());
  return x_TD.to(table_VD.scalar_type());
}

at::Tensor to_head(const families::ModelConfig& config, const at::Tensor& norm_D, const at::Tensor& x_TD) {
  const auto normed_TD = kernels::rms_norm(x_TD, norm_D, config.rms_eps);
  return config.logits_divisor == 1 ? normed_TD : normed_TD / config.logits_divisor;
}

}  // namespace detail

namespace {

using families::Role;

/// Weights by layer; those outside layers at position `num_layers`.
std::vector<detail::LayerWeights> by_layer(const Decoder& decoder) {
  const int64_t layers = decoder.config().num_layers;
  std::vector<detail::LayerWeights> out(layers + 1);
  for (const Parameter& p : decoder.parameters()) out[p.layer < 0 ? layers : p.layer][p.role] = detail::weight_of(p);
  return out;
}

/// Everything before the output layer.
struct Trunk {
  at::Tensor x_TD;              ///< after the final norm, divided by the divisor of the logits
  at::Tensor head_VD;           ///< weight of the output layer
  at::Tensor aux_loss, z_loss;  ///< scalars; undefined unless requested and there are MoE layers
  std::vector<LayerRouting> routing;
};

Trunk run_trunk(const Decoder& decoder, const at::Tensor& tokens_BS, const ForwardOptions& options) {
  const auto& config = decoder.config();
  detail::check_tokens(tokens_BS, config.vocab_size);
  detail::check_document_starts(options.document_start_BS, tokens_BS);
  const auto weights = by_layer(decoder);
  const auto& outer = weights.back();
  detail::BlockContext context{.config = &config,
                               .positions = tokens_BS.size(1),
                               .start_BS = options.document_start_BS,
                               .kernel = options.kernel,
                               .keep_routing = options.keep_routing,
                               .with_aux_loss = options.aux_loss_coef != 0,
                               .with_z_loss = options.z_loss_coef != 0,
                               .with_output_sq = options.with_output_sq,
                               .balance_form = options.balance_form,
                               .lineage = options.lineage,
                               .first_token = options.first_token,
                               .visit_feed_forward = options.visit_feed_forward,
                               .visit_routing = options.visit_routing};
  detail::set_rotary_angles(context);
  const bool recompute = options.recompute && at::GradMode::is_enabled();

  Trunk out;
  std::vector<LayerBalance> balance;
  out.x_TD = detail::embed(config, outer[Role::kEmbedding], tokens_BS);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    context.layer = layer;
    const auto bias = decoder.selection_bias().find(layer);
    context.selection_bias_E = bias == decoder.selection_bias().end() ? at::Tensor() : bias->second;
    LayerRouting* const routing = config.moe_layer[layer] ? &out.routing.emplace_back() : nullptr;
    const auto run = recompute ? detail::run_block_recomputed : detail::run_block;
    const auto block = run(context, weights[layer], out.x_TD, routing);
    out.x_TD = block.x_TD;
    if (block.score_sum.defined()) {
      const auto& count = routing->balance_count;
      const bool alone = options.balance_count.empty();
      balance.push_back({block.score_sum, alone ? count : count + options.balance_count.at(layer)});
    }
    if (block.z_loss.defined()) out.z_loss = out.z_loss.defined() ? out.z_loss + block.z_loss : block.z_loss;
  }
  const auto moe_layers = static_cast<int64_t>(out.routing.size());
  if (!balance.empty()) {
    out.aux_loss = balancing_loss(balance, tokens_BS.numel(), config.top_k, options.balance_form);
  }
  if (out.z_loss.defined()) out.z_loss = out.z_loss / static_cast<double>(moe_layers);
  out.x_TD = detail::to_head(config, outer[Role::kFinalNorm], out.x_TD);
  out.head_VD = outer[config.tied ? Role::kEmbedding : Role::kLmHead];
  return out;
}

}  // namespace

Decoder::Decoder(families::ModelConfig config, ComputeDtype dtype, const TensorFill& fill)
    : config_(std::move(config)), dtype_(dtype) {
  detail::check_supported(config_);
  at_border([&] {
    auto built = detail::build_parameters(config_, dtype, fill);
    parameters_ = std::move(built.parameters);
    selection_bias_ = std::move(built.selection_bias);
  });
}

Decoder Decoder::load(const families::Model& model, ComputeDtype dtype) {
  return Decoder(model.config, dtype, detail::checkpoint_fill(model));
}

at::Tensor Decoder::logits(const at::Tensor& tokens_BS, const ForwardOptions& options,
                           std::vector<LayerRouting>* routing) const {
  return at_border([&] {
    auto trunk = run_trunk(*this, tokens_BS, options);
    if (routing) *routing = std::move(trunk.routing);
    return at::linear(trunk.x_TD, trunk.head_VD).to(at::kFloat).view({tokens_BS.size(0), tokens_BS.size(1), -1});
  });
}

LossOutput Decoder::loss(const at::Tensor& tokens_BS, const at::Tensor& target_BS,
                         const ForwardOptions& options) const {
  COPPICE_CHECK(tokens_BS.sizes() == target_BS.sizes());
  return at_border([&] {
    auto trunk = run_trunk(*this, tokens_BS, options);
    LossOutput out;
    out.loss = kernels::head_loss(trunk.x_TD, trunk.head_VD, target_BS.reshape({-1}));
    out.token_loss = out.loss.item<float>();
    if (trunk.aux_loss.defined()) {
      out.aux_loss = trunk.aux_loss.item<float>();
      out.loss = out.loss + options.aux_loss_coef * trunk.aux_loss;
    }
    if (trunk.z_loss.defined()) {
      out.z_loss = trunk.z_loss.item<float>();
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
    auto trunk = run_trunk(*this, tokens_BS, options);
    if (routing) *routing = std::move(trunk.routing);
    const auto loss_T = kernels::head_token_losses(trunk.x_TD, trunk.head_VD, target_BS.reshape({-1}));
    counts_B = target_BS.ge(0).sum(1);
    return loss_T.view(target_BS.sizes()).to(at::kDouble).sum(1);
  });
}

void Decoder::visit(const std::function<void(const families::TensorSlot&, std::span<const float>)>& visitor) const {
  std::unordered_map<std::string_view, at::Tensor> values;
  for (const Parameter& p : parameters_) {
    for (const auto& slice : p.slices) values[slice.slot.name] = slice.of(p.master);
  }
  const auto show = [&](const families::TensorSlot& slot, const at::Tensor& tensor) {
    const auto ordered = tensor.contiguous();
    visitor(slot, {ordered.const_data_ptr<float>(), static_cast<size_t>(ordered.numel())});
  };
  for (const auto& slot : families::expected_tensors(config_)) {
    if (slot.role() == Role::kSelectionBias) {
      show(slot, selection_bias_.at(slot.layer));
    } else if (const auto found = values.find(slot.name); found != values.end()) {
      show(slot, found->second);
    } else {
      COPPICE_CHECK(std::find(slot.shape.begin(), slot.shape.end(), 0) != slot.shape.end(), slot.name);
      visitor(slot, {});
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
