#include "coppice/base/text.h"
#include "coppice/cli/function_change.h"

namespace coppice::cli {

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

std::string FunctionChange::text() const {
  std::string out = cat("function over ", tokens, " tokens: loss ", fixed_text(loss_before, 4), " -> ",
                        fixed_text(loss_after, 4), " nats, KL ", number_text(kl), " nats, same first token ",
                        percent(top_1, 2), "\nlargest difference of a logit: ", number_text(largest_difference),
                        " (the largest logit is ", number_text(largest_logit), ")\n");
  if (effective_top_k) out += cat("different parents per token: ", number_text(*effective_top_k), "\n");
  if (ties) out += cat("expert choices decided by a tie: ", percent(*ties, 2), "\n");
  return out;
}

}  // namespace coppice::cli
