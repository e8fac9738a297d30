#include "coppice/infer/tensor_names.h"

#include <algorithm>

#include "coppice/base/words.h"
#include "coppice/io/expert_mentions.h"

namespace coppice::infer {
namespace {

std::vector<std::string_view> words_of(std::string_view name) {
  std::vector<std::string_view> words;
  for (size_t begin = 0;;) {
    const size_t end = std::min(name.find('.', begin), name.size());
    words.push_back(name.substr(begin, end - begin));
    if (end == name.size()) return words;
    begin = end + 1;
  }
}

/// "expert_3", "experts_3", and, if a word follows, "expert3".
std::string_view number_of(std::string_view word, bool is_last) {
  const auto at = io::number_in_word(word);
  if (!at || !is_digits(word.substr(*at)) || (is_last && word[*at - 1] != '_')) return {};
  return word.substr(*at);
}

}  // namespace

bool is_digits(std::string_view word) {
  constexpr size_t kMost = 9;
  return !word.empty() && word.size() <= kMost && word.find_first_not_of("0123456789") == word.npos;
}

int64_t SplitName::expert() const {
  const std::string_view word = words.at(*number_at);
  return std::stoll(std::string(word.substr(word.find_last_not_of("0123456789") + 1)));
}

std::string SplitName::joined(size_t begin, size_t end) const {
  std::string out;
  for (size_t i = begin; i < end; ++i) {
    if (i > begin) out += '.';
    out += words[i];
  }
  return out;
}

SplitName split_name(std::string_view name) {
  SplitName out{words_of(name), {}, {}};
  for (size_t i = 0; i < out.words.size(); ++i) {
    const std::string word = lower(out.words[i]);
    if (!contains(word, "expert") || contains(word, "layer") || is_shared(word)) continue;
    if (!number_of(out.words[i], i + 1 == out.words.size()).empty()) {
      out.number_at = out.container_at = i;
      break;
    }
    if (i + 1 < out.words.size() && is_digits(out.words[i + 1])) {
      out.number_at = i + 1;
      out.container_at = i;
      break;
    }
  }
  return out;
}

std::string layer_prefix(const SplitName& name, size_t end) {
  for (size_t i = std::min(end, name.words.size()); i-- > 0;) {
    if (is_digits(name.words[i])) return name.joined(0, i + 1);
  }
  return {};
}

std::optional<size_t> stack_container(const SplitName& name) {
  for (size_t i = 0; i + 1 < name.words.size(); ++i) {
    const std::string_view word = name.words[i];
    const size_t found = word.find("expert");
    if (found == word.npos || (found > 0 && word[found - 1] != '_')) continue;
    std::string_view rest = word.substr(found + std::string_view("expert").size());
    if (rest.starts_with('s')) rest.remove_prefix(1);
    if (!rest.empty() && (rest.front() != '_' || rest.size() == 1)) continue;
    constexpr std::string_view kBeside[] = {"pre_expert",  "post_expert", "expert_proj",
                                            "expert_norm", "expert_gate", "expert_bias"};
    const bool is_beside = contains_any(word, kBeside);
    if (!is_beside && !is_shared(word)) return i;
  }
  return std::nullopt;
}

bool is_below(std::string_view name, std::string_view module) {
  return name.starts_with(module) && name.size() > module.size() && name[module.size()] == '.';
}

bool is_shared(std::string_view name) {
  return std::ranges::any_of(words_of(name), [](std::string_view word) {
    const std::string text = lower(word);
    constexpr std::string_view kWords[] = {"shared_expert", "shared_mlp",    "share_expert", "fixed_expert",
                                           "common_expert", "always_expert", "static_expert"};
    return text.starts_with("share") || text.ends_with("_shared") || contains_any(text, kWords);
  });
}

bool speaks_of_something_else(std::string_view name) {
  constexpr std::string_view kWords[] = {"attn",    "attention", "norm",       "ln_",  "embed", "wte",       "wpe",
                                         "lm_head", "mamba",     "ssm",        "conv", "rope",  "rotary",    "q_proj",
                                         "k_proj",  "v_proj",    "o_proj",     "qkv",  "dense", "vision",    "visual",
                                         "image",   "audio",     "tower",      "vit",  "mm_",   "projector", "patch",
                                         "mixer",   "position",  "gated_delta"};
  return contains_any(lower(name), kWords);
}

bool speaks_of_a_router(std::string_view rest) {
  constexpr std::string_view kNames[] = {"gate",       "gates",       "gating",        "wg",
                                         "classifier", "gate_weight", "gating_network"};
  return std::ranges::any_of(words_of(rest), [&](std::string_view word) {
    return word.starts_with("router") || std::ranges::find(kNames, word) != std::end(kNames);
  });
}

bool speaks_of_a_row(std::string_view name) {
  constexpr std::string_view kNames[] = {"correction_bias", "expert_bias", "experts_bias",
                                         "router_bias",     "per_expert",  "expert_scale"};
  if (contains_any(name, kNames)) return true;
  return std::ranges::any_of(words_of(name), [](std::string_view word) {
    const size_t at = word.find("balanc");
    return at != word.npos && word.find("_bias", at) != word.npos;
  });
}

bool speaks_of_experts(std::string_view rest) { return contains(lower(rest), "expert"); }

std::string without_numbers(std::string_view name) {
  std::string out;
  for (const std::string_view word : words_of(name)) {
    const bool is_first = out.empty();
    if (!is_first) out += '.';
    out += !is_first && is_digits(word) ? std::string_view("#") : word;
  }
  return out;
}

}  // namespace coppice::infer
