#include "coppice/eval/perplexity.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "coppice/base/check.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/eval/windows_detail.h"
#include "coppice/nn/host.h"

// B windows per forward pass, S positions, E experts.

namespace coppice::eval {

detail::Windows detail::windows_of(const data::TokenFile& tokens, const LossSettings& settings) {
  if (tokens.num_tokens() < 2) {
    throw Error(ErrorCode::kUsage,
                cat(tokens.path(), ": ", tokens.num_tokens(), " tokens; wanted 2 or more to predict one"));
  }
  const uint64_t predictions = tokens.num_tokens() - 1;
  const auto length = static_cast<uint64_t>(settings.sequence_length);
  const uint64_t all = predictions / length;
  if (all == 0 || settings.max_tokens == 0 || settings.max_tokens >= predictions) return {all, predictions % length};
  return {std::clamp<uint64_t>(settings.max_tokens / length, 1, all), 0};
}

at::Tensor detail::document_starts(const data::TokenFile& tokens, uint64_t begin, at::IntArrayRef sizes) {
  auto start_BS = at::empty(sizes, at::kLong);
  for (int64_t b = 0; b < sizes[0]; ++b) {
    tokens.document_starts(begin + static_cast<uint64_t>(b * sizes[1]), nn::token_row(start_BS, b));
  }
  return start_BS;
}

void detail::require_finite(double value, std::string_view what, const data::TokenFile& tokens) {
  if (std::isfinite(value)) return;
  throw Error(ErrorCode::kNonFinite, cat(tokens.path(), ": the model's ", what, " on this file is ", value,
                                         "; wanted a finite number (the model is damaged, its training diverged, or "
                                         "the values are too large for bf16: try --dtype f32)"));
}

namespace {

using detail::Windows;
using detail::windows_of;

// What the passes leave on the model's device; read once, at the end.
struct Sums {
  std::vector<at::Tensor> loss_B;         // of each pass
  std::vector<int64_t> length;            // of its windows
  std::vector<nn::LayerRouting> routing;  // its counts are those of all windows
};

void add_routing(Sums& sums, const std::vector<nn::LayerRouting>& routing) {
  if (sums.routing.empty()) {
    sums.routing = routing;
    return;
  }
  COPPICE_CHECK(routing.size() == sums.routing.size());
  for (size_t i = 0; i < routing.size(); ++i) sums.routing[i].count_E = sums.routing[i].count_E + routing[i].count_E;
}

// `windows` windows of `length` predictions from token `begin` on.
struct Stretch {
  uint64_t begin = 0;
  int64_t windows = 0, length = 0;
};

template <class Model>
void add_windows(const Model& model, const data::TokenFile& tokens, const Stretch& stretch,
                 const LossSettings& settings, Sums& sums) {
  const auto& [begin, count, length] = stretch;
  const at::Tensor tokens_BS = at::empty({count, length}, at::kLong), target_BS = at::empty({count, length}, at::kLong);
  nn::ForwardOptions forward;
  forward.lineage = settings.lineage;
  forward.first_token = begin;
  if (settings.reset_attention) forward.document_start_BS = detail::document_starts(tokens, begin, {count, length});
  for (int64_t b = 0; b < count; ++b) {
    const uint64_t first = begin + static_cast<uint64_t>(b * length);
    tokens.read(first, nn::token_row(tokens_BS, b));
    tokens.read(first + 1, nn::token_row(target_BS, b));
  }
  at::Tensor counts_B;
  std::vector<nn::LayerRouting> routing;
  sums.loss_B.push_back(model.sequence_loss(tokens_BS, target_BS, forward, counts_B, &routing));
  sums.length.push_back(length);
  add_routing(sums, routing);
}

double variance_of_mean(const std::vector<double>& values) {
  if (values.size() < 2) return std::numeric_limits<double>::quiet_NaN();
  const auto n = static_cast<double>(values.size());
  double mean = 0, squares = 0;
  for (const double x : values) mean += x / n;
  for (const double x : values) squares += (x - mean) * (x - mean);
  return squares / (n * (n - 1));
}

// On a device this waits for it, once.
TokenLoss read(const Sums& sums, const data::TokenFile& tokens) {
  TokenLoss out;
  std::vector<at::Tensor> there = sums.loss_B;
  for (const auto& layer : sums.routing) there.push_back(layer.count_E);
  const auto here = nn::on_host_together(there);
  std::vector<double> mean_of_sequence;
  for (size_t pass = 0; pass < sums.loss_B.size(); ++pass) {
    for (const double sum : nn::to_host<double>(here[pass])) {
      out.loss += sum;
      mean_of_sequence.push_back(sum / static_cast<double>(sums.length[pass]));
    }
    out.tokens += static_cast<uint64_t>(here[pass].numel() * sums.length[pass]);
  }
  out.loss /= static_cast<double>(out.tokens);
  detail::require_finite(out.loss, "loss", tokens);
  out.loss_variance = variance_of_mean(mean_of_sequence);
  for (size_t i = 0; i < sums.routing.size(); ++i) {
    out.moe_layers.push_back(sums.routing[i].layer);
    out.expert_counts.push_back(nn::to_host<int64_t>(here[sums.loss_B.size() + i]));
  }
  return out;
}

template <class Model>
TokenLoss loss_over(const Model& model, const data::TokenFile& tokens, const LossSettings& settings) {
  COPPICE_CHECK(settings.sequence_length > 0 && settings.batch > 0);
  const at::NoGradGuard no_grad;
  const Windows windows = windows_of(tokens, settings);
  const auto length = static_cast<uint64_t>(settings.sequence_length);
  Progress progress(cat("eval ", tokens.path().filename()), windows.whole * length + windows.rest,
                    ProgressUnit::kTokens);
  Sums sums;
  for (uint64_t w = 0; w < windows.whole;) {
    check_interrupt();
    const auto count = std::min<uint64_t>(static_cast<uint64_t>(settings.batch), windows.whole - w);
    add_windows(model, tokens, {w * length, static_cast<int64_t>(count), settings.sequence_length}, settings, sums);
    w += count;
    progress.advance(count * length);
  }
  if (windows.rest > 0) {
    add_windows(model, tokens, {windows.whole * length, 1, static_cast<int64_t>(windows.rest)}, settings, sums);
  }
  return read(sums, tokens);
}

}  // namespace

double TokenLoss::perplexity() const { return std::exp(loss); }

std::optional<double> TokenLoss::bits_per_byte(const data::TokenFile& file) const {
  const auto& card = file.card();
  if (!card || card->text_bytes == 0) return std::nullopt;
  return loss / std::numbers::ln2 * static_cast<double>(card->tokens) / static_cast<double>(card->text_bytes);
}

TokenLoss token_loss(const nn::Decoder& model, const data::TokenFile& tokens, const LossSettings& settings) {
  return loss_over(model, tokens, settings);
}

TokenLoss token_loss(const nn::FittedDecoder& model, const data::TokenFile& tokens, const LossSettings& settings) {
  auto fitted = settings;
  fitted.batch = model.sequences_at_once(settings.sequence_length, settings.batch);
  return loss_over(model, tokens, fitted);
}

}  // namespace coppice::eval
