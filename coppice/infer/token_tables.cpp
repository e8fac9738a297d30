// Rule 3: a table with a row for each token may name experts in place of a router, in whatever dtype it is stored.

#include <algorithm>

#include "coppice/base/words.h"
#include "coppice/infer/inference_detail.h"
#include "coppice/infer/refuse_detail.h"

namespace coppice::infer::detail {
namespace {

/// Whether the name is that of a table of experts: "tid2eid", "expert_ids", "hash_table".
bool speaks_of_a_table(std::string_view name) {
  constexpr std::string_view kWords[] = {"tid2",      "2eid",       "hash",       "lookup",   "token_to",
                                         "expert_id", "expert_ind", "expert_map", "to_expert"};
  return contains_any(name, kWords);
}

/// The sizes of other things than vocabularies, and twice these.
std::set<int64_t> other_sizes(const Json& part) {
  constexpr std::string_view kSizes[] = {"hidden", "intermediate", "dim", "width", "ffn", "d_model", "rank"};
  std::set<int64_t> out;
  for (const auto& [path, number] : whole_numbers(part)) {
    const std::string key = lower(path);
    if (number > (int64_t{1} << 40) || !contains_any(key, kSizes) || contains(key, "vocab")) continue;
    out.insert(number);
    out.insert(2 * number);
  }
  return out;
}

}  // namespace

void Inference::refuse_token_tables() const {
  std::set<int64_t> tokens = count.vocabularies;
  for (const Tensor& t : tensors) {
    constexpr std::string_view kEmbeddings[] = {"embed_tokens", "word_embed", "tok_embed", "wte.", "lm_head"};
    if (t.layer < 0 && t.shape().size() == 2 && contains_any(t.name, kEmbeddings)) tokens.insert(t.shape()[0]);
  }
  std::erase_if(tokens, [](int64_t size) { return size < 2; });
  const std::set<int64_t> others = other_sizes(*count.part);
  for (const Tensor& t : tensors) {
    if (t.kind != Kind::kOther || is_left_alone(t.name) || is_shared(t.name)) continue;
    const bool is_in_layer = t.layer >= 0;
    const Layer* const layer = is_in_layer ? &layers[static_cast<size_t>(t.layer)] : nullptr;
    const std::string rest = lower(is_in_layer ? layer->rest(t.name) : t.name);
    const bool is_near = speaks_of_a_router(rest) || speaks_of_experts(rest) || contains(rest, "moe") ||
                         (is_in_layer && !layer->module_of(t.name).empty());
    if (is_near && speaks_of_a_table(rest))
      refuse(Rule::kRouter, cat(t.text(), ": by its name a table that may name experts"));
    const auto row = std::ranges::find_if(t.shape(), [&tokens](int64_t size) { return tokens.contains(size); });
    if (row == t.shape().end() || (!is_near && (!is_in_layer || speaks_of_something_else(rest)))) continue;
    const bool is_choice = t.shape().size() == 1 || (t.shape().size() == 2 && t.has_dim(count.top_k));
    if (is_choice || !others.contains(*row))
      refuse(Rule::kRouter, cat(t.text(), ": a row for each of ", *row, " tokens, which may name experts"));
  }
}

}  // namespace coppice::infer::detail
