#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <tuple>

#include "coppice/base/check.h"
#include "coppice/kernels/embedding.h"
#include "coppice/kernels/rms_norm.h"
#include "coppice/nn/host.h"
#include "coppice/nn/rotary_detail.h"
#include "coppice/nn/trunk_detail.h"

namespace coppice::nn::detail {

void check_supported(const families::ModelConfig& config) {
  if (!config.unsupported_in_nn.empty()) {
    throw Error(ErrorCode::kUnsupported, cat("config.json: the model has ", join(config.unsupported_in_nn),
                                             ", which this build cannot compute (inspect and expand still work",
                                             config.is_quantised() ? "; expand --dequantize writes bf16)" : ")"));
  }
}

void check_tokens(const at::Tensor& tokens_BS, int64_t vocabulary) {
  COPPICE_CHECK(tokens_BS.dim() == 2);
  const auto tokens = host_values<int64_t>(tokens_BS);
  const auto bad = std::ranges::find_if(tokens, [=](int64_t id) { return id < 0 || id >= vocabulary; });
  if (bad == tokens.end()) return;
  throw Error(ErrorCode::kFormat, cat("token id ", *bad, " at position ", bad - tokens.begin(),
                                      ": is outside the vocabulary; wanted ids below ", vocabulary,
                                      " (check that the data was tokenized for this model)"));
}

at::Tensor checked_targets(const at::Tensor& target_T, int64_t vocabulary, at::Device device) {
  const auto targets = host_values<int64_t>(target_T);
  const auto bad = std::ranges::find_if(targets, [=](int64_t id) { return id < -1 || id >= vocabulary; });
  if (bad == targets.end()) return to_device(target_T, device);
  throw Error(ErrorCode::kFormat,
              cat("target id ", *bad, " at position ", bad - targets.begin(), ": found outside the vocabulary of ",
                  vocabulary, "; wanted ids below it (was the data tokenized for another model?)"));
}

TensorFill checkpoint_fill(const families::Model& model) {
  return [&model](const families::TensorSlot& slot, std::span<float> values) {
    const auto entry = model.checkpoint.at(slot.name);
    if (!io::is_float(entry.info->dtype)) {
      throw Error(ErrorCode::kShape,
                  cat(entry.file->path(), ": '", slot.name, "' is ", io::dtype_name(entry.info->dtype),
                      "; wanted F32, BF16 or F16 (dequantize the checkpoint first)"));
    }
    const bool is_part = slot.expert >= 0 && slot.rule->layout.stacked;
    io::to_f32(entry.info->dtype, is_part ? part_of(slot, entry.data(), model.config.num_experts) : entry.data(),
               values);
    entry.file->release(*entry.info);
  };
}

void check_document_starts(const at::Tensor& start_BS, const at::Tensor& tokens_BS) {
  if (!start_BS.defined()) return;
  COPPICE_CHECK(start_BS.sizes() == tokens_BS.sizes());
  const int64_t positions = start_BS.size(1);
  for (int64_t b = 0; b < start_BS.size(0); ++b) {
    const auto start = token_row(start_BS, b);
    for (int64_t s = 0; s < positions; ++s) {
      COPPICE_CHECK(start[s] == s || (s > 0 && start[s] == start[s - 1]), "document start ", start[s], " at ", s);
    }
  }
}

at::Tensor weight_of(const Parameter& parameter) {
  return parameter.slices.front().slot.rule->centred ? parameter.value.to(at::kFloat) + 1 : parameter.value;
}

void set_rotary_angles(BlockContext& context, AngleCache& angles) {
  std::tie(context.cos_SR, context.sin_SR) = angles.of(context.positions);
  if (!context.documents.exist()) return;
  const auto& start_BS = context.documents.start_BS;
  // Positions start again with each document: angles of every token instead of every position.
  const auto position_T = (at::arange(context.positions, start_BS.options()) - start_BS).view({-1});
  context.cos_SR = context.cos_SR.index_select(0, position_T);
  context.sin_SR = context.sin_SR.index_select(0, position_T);
}

// A square root is a buffer of the model in transformers, and has its dtype; other multipliers are numbers.
double embedding_multiplier(const families::ModelConfig& config, at::ScalarType dtype) {
  const double exact = config.embedding_multiplier;
  if (!config.family->multipliers.sqrt_embedding || dtype != at::kBFloat16) return exact;
  return static_cast<double>(static_cast<float>(at::BFloat16(static_cast<float>(exact))));
}

at::Tensor embed(const families::ModelConfig& config, const at::Tensor& table_VD, const at::Tensor& tokens_BS) {
  check_tokens(tokens_BS, table_VD.size(0));
  const auto token_T = to_device(tokens_BS, table_VD.device()).view({-1});
  auto x_TD = kernels::embed(table_VD, token_T);
  if (config.embedding_multiplier != 1) x_TD = x_TD * embedding_multiplier(config, table_VD.scalar_type());
  return x_TD.to(table_VD.scalar_type());
}

// The counts of all ranks instead of this rank's.
void sum_counts(dist::Group& all, std::vector<LayerBalance>& layers) {
  std::vector<at::Tensor> counts;
  for (const LayerBalance& layer : layers) counts.push_back(layer.count_N);
  const auto sums = at::stack(counts);
  all.all_reduce(sums).wait();
  for (size_t i = 0; i < layers.size(); ++i) layers[i].count_N = sums[static_cast<int64_t>(i)];
}

at::Tensor run_layers(const LayerRange& layers, const at::Tensor& x_TD, int64_t positions,
                      const ForwardOptions& options, std::vector<LayerRouting>* routing, BalanceTerms* terms) {
  const families::ModelConfig& config = layers.config;
  BlockContext context{.config = &config,
                       .positions = positions,
                       .kernel = options.kernel,
                       .keep_routing = options.keep_routing,
                       .with_aux_loss = terms && options.aux_loss_coef != 0,
                       .with_z_loss = terms && options.z_loss_coef != 0,
                       .with_output_sq = options.with_output_sq,
                       .balance_form = options.balance_form,
                       .lineage = options.lineage,
                       .first_token = options.first_token,
                       .visit_feed_forward = options.visit_feed_forward,
                       .visit_routing = options.visit_routing};
  context.documents = kernels::find_documents(options.document_start_BS, x_TD.device());
  set_rotary_angles(context, layers.angles);
  std::vector<std::vector<const Parameter*>> by_layer(static_cast<size_t>(layers.last - layers.first));
  for (const Parameter& p : layers.parameters) {
    if (p.layer >= 0) by_layer[p.layer - layers.first].push_back(&p);
  }
  const auto run = options.recompute && at::GradMode::is_enabled() ? run_block_recomputed : run_block;

  at::Tensor out_TD = x_TD;
  std::vector<int64_t> balanced_layers;
  for (int64_t layer = layers.first; layer < layers.last; ++layer) {
    context.layer = layer;
    const auto bias = layers.selection_bias.find(layer);
    const auto exchange = layers.exchanges.find(layer);
    context.exchange = exchange == layers.exchanges.end() ? nullptr : &exchange->second;
    context.selection_bias_E = bias == layers.selection_bias.end() ? at::Tensor() : bias->second;
    if (options.before_layer) options.before_layer(layer);
    LayerWeights weights;
    for (const Parameter* const p : by_layer[layer - layers.first]) weights[p->role] = weight_of(*p);
    LayerRouting* const kept = routing && config.moe_layer[layer] ? &routing->emplace_back() : nullptr;
    const BlockOutput block = run(context, weights, out_TD, kept);
    out_TD = block.x_TD;
    if (block.score_sum.defined()) {
      balanced_layers.push_back(layer);
      terms->layers.push_back({block.score_sum, kept->balance_count});
    }
    if (block.z_loss.defined()) {
      terms->z_loss = terms->z_loss.defined() ? terms->z_loss + block.z_loss : block.z_loss;
    }
  }
  if (balanced_layers.empty()) return out_TD;
  if (layers.all) sum_counts(*layers.all, terms->layers);
  if (!options.balance_count.empty()) {
    for (size_t i = 0; i < balanced_layers.size(); ++i) {
      auto& count_N = terms->layers[i].count_N;
      count_N = count_N + options.balance_count.at(balanced_layers[i]);
    }
  }
  return out_TD;
}

at::Tensor to_head(const families::ModelConfig& config, const at::Tensor& norm_D, const at::Tensor& x_TD) {
  const auto normed_TD = kernels::rms_norm(x_TD, norm_D, config.rms_eps);
  return config.logits_divisor == 1 ? normed_TD : normed_TD / config.logits_divisor;
}

}  // namespace coppice::nn::detail
