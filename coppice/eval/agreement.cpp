#include "coppice/eval/agreement.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/eval/windows_detail.h"
#include "coppice/nn/border.h"
#include "coppice/nn/host.h"

// B windows, S positions, T = B * S, V vocabulary.

namespace coppice::eval {
namespace {

struct Sums {
  double kl = 0, loss = 0, other_loss = 0, largest_difference = 0, largest_logit = 0, same_top = 0;

  void over_ranks(const nn::Division& division) {
    std::array<double, 4> added{kl, loss, other_loss, same_top};
    std::array<double, 2> largest_of{largest_difference, largest_logit};
    division.sum_over_ranks(added);
    division.max_over_ranks(largest_of);
    kl = added[0], loss = added[1], other_loss = added[2], same_top = added[3];
    largest_difference = largest_of[0], largest_logit = largest_of[1];
  }
};

at::Tensor sum_of_losses(const at::Tensor& log_p_TV, const at::Tensor& target_T) {
  return -at::gather(log_p_TV, 1, target_T.unsqueeze(1)).sum(at::kDouble);
}

at::Tensor largest(const at::Tensor& x) { return x.abs().max().to(at::kDouble); }

// Limits the tokens per pass, so that their probabilities take little memory.
int64_t tokens_a_chunk(int64_t vocabulary) { return std::max<int64_t>(32, (1 << 22) / vocabulary); }

// target_T is on the host; one read of a device.
void add_logits(const at::Tensor& logits_TV, const at::Tensor& other_TV, const at::Tensor& target_T, Sums& sums) {
  const auto log_p_TV = at::log_softmax(other_TV, -1), log_q_TV = at::log_softmax(logits_TV, -1);
  const auto target = target_T.to(logits_TV.device());
  const auto kl = (log_p_TV.exp() * (log_p_TV - log_q_TV)).sum(at::kDouble);
  const auto same_top = at::argmax(log_p_TV, -1).eq(at::argmax(log_q_TV, -1)).sum(at::kDouble);
  const auto found =
      nn::to_host<double>(at::stack({kl, same_top, sum_of_losses(log_q_TV, target), sum_of_losses(log_p_TV, target),
                                     largest(logits_TV - other_TV), largest(other_TV)}));
  sums.kl += found[0];
  sums.same_top += found[1];
  sums.loss += found[2];
  sums.other_loss += found[3];
  sums.largest_difference = std::max(sums.largest_difference, found[4]);
  sums.largest_logit = std::max(sums.largest_logit, found[5]);
}

/// Some windows: input tokens and the token that each position should predict.
struct Stretch {
  at::Tensor tokens_BS, target_BS;
  nn::ForwardOptions forward;
};

void add_windows(const nn::FittedDecoder& model, const nn::FittedDecoder& other, const Stretch& stretch,
                 const VisitRouting& visit_routing, Sums& sums) {
  std::map<int64_t, at::Tensor> others;  // keyed by first window
  std::optional<nn::LoadedHead> other_head;
  other.visit_outputs(stretch.tokens_BS, stretch.forward,
                      [&](int64_t first, const nn::LoadedHead& head, const at::Tensor& x_TD) {
                        others[first] = x_TD;
                        other_head = head;
                      });
  const int64_t chunk = tokens_a_chunk(model.config().vocab_size), length = stretch.tokens_BS.size(1);
  const auto target_T = stretch.target_BS.flatten();
  auto forward = stretch.forward;
  forward.visit_routing = visit_routing;
  model.visit_outputs(
      stretch.tokens_BS, forward, [&](int64_t first, const nn::LoadedHead& head, const at::Tensor& x_TD) {
        for (int64_t t = 0; t < x_TD.size(0); t += chunk) {
          const int64_t count = std::min(chunk, x_TD.size(0) - t);
          add_logits(head.logits(x_TD.narrow(0, t, count)), other_head->logits(others.at(first).narrow(0, t, count)),
                     target_T.narrow(0, first * length + t, count), sums);
        }
      });
}

}  // namespace

Agreement agreement(const nn::FittedDecoder& model, const nn::FittedDecoder& other, const data::TokenFile& tokens,
                    const LossSettings& settings, const VisitRouting& visit_routing) {
  if (model.config().vocab_size != other.config().vocab_size) {
    throw Error(ErrorCode::kUsage,
                cat("against: the other model has a vocabulary of ", other.config().vocab_size, " and the model ",
                    model.config().vocab_size, "; wanted models with the same tokenizer"));
  }
  const at::NoGradGuard no_grad;
  const auto windows = detail::windows_of(tokens, settings);
  const auto length = static_cast<uint64_t>(settings.sequence_length);
  const auto at_once =
      static_cast<uint64_t>(std::min(model.sequences_at_once(settings.sequence_length, settings.batch),
                                     other.sequences_at_once(settings.sequence_length, settings.batch)) *
                            model.division().num_ranks());
  const uint64_t all = windows.whole * length + windows.rest;
  Progress progress(cat("compare ", tokens.path().filename()), all, ProgressUnit::kTokens);
  Sums sums;
  const auto add = [&](uint64_t begin, uint64_t count, uint64_t size) {
    const auto [skipped, own] = model.division().share_of(count);
    progress.advance(count * size);
    if (own == 0 && !model.division().is_joint() && !other.division().is_joint()) return;
    begin += skipped * size;
    const std::vector<int64_t> sizes{static_cast<int64_t>(own), static_cast<int64_t>(size)};
    Stretch stretch{at::empty(sizes, at::kLong), at::empty(sizes, at::kLong), {}};
    tokens.read(begin, nn::host_values<int64_t>(stretch.tokens_BS));
    tokens.read(begin + 1, nn::host_values<int64_t>(stretch.target_BS));
    if (settings.reset_attention && own > 0)
      stretch.forward.document_start_BS = detail::document_starts(tokens, begin, sizes);
    nn::at_border([&] { add_windows(model, other, stretch, visit_routing, sums); });
  };
  for (uint64_t w = 0; w < windows.whole; w += at_once) add(w * length, std::min(at_once, windows.whole - w), length);
  if (windows.rest > 0) add(windows.whole * length, 1, windows.rest);
  sums.over_ranks(model.division());
  const auto n = static_cast<double>(all);
  detail::require_finite(sums.loss, "loss", tokens);
  detail::require_finite(sums.other_loss, "other model's loss", tokens);
  detail::require_finite(sums.kl, "divergence", tokens);
  return {.kl = sums.kl < 0 ? 0 : sums.kl / n,  // rounding can make it negative
          .top_1 = sums.same_top / n,
          .tokens = all,
          .loss = sums.loss / n,
          .other_loss = sums.other_loss / n,
          .largest_difference = sums.largest_difference,
          .largest_logit = sums.largest_logit};
}

}  // namespace coppice::eval
