#include "coppice/eval/function_change.h"

#include <ATen/ops/gather.h>

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/data/token_file.h"
#include "coppice/eval/agreement.h"
#include "coppice/nn/device.h"
#include "coppice/nn/device_memory.h"
#include "coppice/nn/fitted_decoder.h"
#include "coppice/nn/host.h"
#include "coppice/nn/router.h"
#include "coppice/step/layer_metrics.h"

namespace coppice::eval {
namespace {

constexpr int64_t kUsualLength = 256;

/// The number of tokens for which an expert that was not chosen has the same score as one that was.
///
/// Shapes   choice_TE f32; index_TK.
int64_t tied_tokens(const at::Tensor& choice_TE, const at::Tensor& index_TK) {
  const auto least_T1 = std::get<0>(at::gather(choice_TE, 1, index_TK).min(1, true));
  const auto as_good_T = choice_TE.eq(least_T1).sum(1),
             chosen_T = at::gather(choice_TE, 1, index_TK).eq(least_T1).sum(1);
  return static_cast<int64_t>(nn::number(as_good_T.gt(chosen_T).sum()));
}

class RoutingSums {
 public:
  explicit RoutingSums(const std::map<int64_t, std::vector<int64_t>>& parents) {
    for (const auto& [layer, of_layer] : parents) {
      if (std::ranges::find(of_layer, -1) == of_layer.end()) parents_[layer].assign(of_layer.begin(), of_layer.end());
    }
  }

  void add(int64_t layer, const nn::Routed& routed) {
    const int64_t tokens = routed.index_TK.size(0);
    tokens_ += tokens;
    ties_ += tied_tokens(routed.choice_TE, routed.index_TK);
    const auto own = parents_.find(layer);
    if (own == parents_.end()) return;
    of_parents_ += tokens;
    distinct_ += static_cast<double>(tokens) * step::effective_top_k(routed.index_TK.to(at::kCPU), own->second);
  }

  void write_to(FunctionChange& change) const {
    if (tokens_ > 0) change.ties = static_cast<double>(ties_) / static_cast<double>(tokens_);
    if (of_parents_ > 0) change.effective_top_k = distinct_ / static_cast<double>(of_parents_);
  }

 private:
  std::map<int64_t, std::vector<uint32_t>> parents_;
  int64_t tokens_ = 0, ties_ = 0, of_parents_ = 0;
  double distinct_ = 0;
};

}  // namespace

FunctionChange function_change(const families::Model& before, const families::Model& after,
                               const std::map<int64_t, std::vector<int64_t>>& parents,
                               const FunctionSettings& settings) {
  const int64_t longest = std::min(before.config.max_positions, after.config.max_positions);
  const int64_t length = settings.sequence_length.value_or(std::min(kUsualLength, longest));
  if (length < 1 || length > longest) {
    throw Error(ErrorCode::kUsage, cat("sequence-length: ", length, "; wanted 1 to the models' ", longest));
  }
  const auto files =
      data::open_token_files(before.checkpoint.directory(), before.config.vocab_size, std::span(&settings.tokens, 1));
  const at::Device device = nn::compute_device(settings.device);
  const uint64_t bytes = settings.max_memory_bytes > 0 ? settings.max_memory_bytes : nn::memory_of(device).total / 2;
  const nn::FittedDecoder first(before, nn::ComputeDtype::kF32, bytes / 2, device);
  const nn::FittedDecoder second(after, nn::ComputeDtype::kF32, bytes / 2, device);
  RoutingSums sums(parents);
  const auto found = agreement(second, first, files.front(),
                               {.sequence_length = length, .max_tokens = settings.max_tokens, .lineage = {}},
                               [&](int64_t layer, const nn::Routed& routed) { sums.add(layer, routed); });
  FunctionChange out{.tokens = found.tokens,
                     .loss_before = found.other_loss,
                     .loss_after = found.loss,
                     .kl = found.kl,
                     .top_1 = found.top_1,
                     .largest_difference = found.largest_difference,
                     .largest_logit = found.largest_logit,
                     .effective_top_k = {},
                     .ties = {}};
  sums.write_to(out);
  return out;
}

Json FunctionChange::to_json() const {
  Json json = Json::object();
  json["tokens"] = tokens;
  json["loss_before"] = loss_before;
  json["loss_after"] = loss_after;
  json["kl"] = kl;
  json["top_1_agreement"] = top_1;
  json["largest_logit_difference"] = largest_difference;
  json["largest_logit"] = largest_logit;
  if (effective_top_k) json["effective_top_k"] = *effective_top_k;
  if (ties) json["ties"] = *ties;
  return json;
}

std::string FunctionChange::to_text() const {
  std::string out = cat("function over ", tokens, " tokens: loss ", fixed_text(loss_before, 4), " -> ",
                        fixed_text(loss_after, 4), " nats, KL ", number_text(kl), " nats, same first token ",
                        percent(top_1, 2), "\nlargest difference of a logit: ", number_text(largest_difference),
                        " (the largest logit is ", number_text(largest_logit), ")\n");
  if (effective_top_k) out += cat("different parents per token: ", number_text(*effective_top_k), "\n");
  if (ties) out += cat("expert choices decided by a tie: ", percent(*ties, 2), "\n");
  return out;
}

}  // namespace coppice::eval
