// Rules 3 and 4: the router of every layer, the values of each expert beside it, and everything else of the size E.

#include <algorithm>
#include <utility>

#include "coppice/base/words.h"
#include "coppice/infer/inference_detail.h"
#include "coppice/infer/refuse_detail.h"

namespace coppice::infer::detail {
namespace {

using io::Dtype;

/// Whether the dtype can be that of weights: floating point, or bytes that a format packs.
bool may_be_weights(Dtype dtype) {
  switch (dtype) {
    case Dtype::kBool:
    case Dtype::kI16:
    case Dtype::kU16:
    case Dtype::kI32:
    case Dtype::kU32:
    case Dtype::kI64:
    case Dtype::kU64:
    case Dtype::kC64: return false;
    default: return true;
  }
}

bool is_floating(Dtype dtype) { return may_be_weights(dtype) && dtype != Dtype::kU8 && dtype != Dtype::kI8; }

std::string_view stem_of(std::string_view name) { return name.substr(0, name.rfind('.')); }
std::string_view last_of(std::string_view name) { return name.substr(name.rfind('.') + 1); }

/// The word that says what the tensor is: the last one, or the one before "weight" and "bias".
std::string_view telling_word(std::string_view name) {
  const std::string_view last = last_of(name);
  const bool is_plain = last == "weight" || last == "bias";
  return is_plain && !speaks_of_a_row(last) ? last_of(stem_of(name)) : last;
}

/// Names of vectors that belong to attention or a state space and to nothing else, whatever their length.
bool is_conclusive(std::string_view name) {
  constexpr std::string_view kWords[] = {"attn",   "attention", "mamba",  "ssm",   "conv",
                                         "q_norm", "k_norm",    "vision", "audio", "visual"};
  return contains_any(name, kWords);
}

int64_t elements(const Tensor& tensor) {
  int64_t out = 1;
  for (const int64_t size : tensor.shape()) out *= size;
  return out;
}

}  // namespace

void Inference::find_members() {
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::string_view name = tensors[i].name;
    for (size_t end = name.rfind('.'); end != name.npos && end > 0; end = name.rfind('.', end - 1)) {
      const auto found = layer_at_.find(std::string(name.substr(0, end)));
      if (found == layer_at_.end()) continue;
      tensors[i].layer = static_cast<int64_t>(found->second);
      layers[found->second].members.push_back(i);
      break;
    }
  }
  std::set<std::string> in_plain_layers;  // names of tensors in numbered layers that have no experts
  for (const Tensor& t : tensors) {
    const SplitName name = split_name(t.name);
    if (t.layer < 0 && !layer_prefix(name, name.words.size()).empty()) in_plain_layers.insert(without_numbers(t.name));
  }
  for (const Tensor& t : tensors) {
    if (t.kind != Kind::kOther || is_left_alone(t.name)) continue;
    const bool is_in_layer = t.layer >= 0;
    if (!is_in_layer && !t.shape().empty() && !may_be_weights(t.info->dtype) && !speaks_of_something_else(t.name))
      refuse(Rule::kRouter, cat(t.text(), ": whole numbers that may name experts"));
    if (!t.has_dim(count.experts)) continue;
    if (is_in_layer) {
      const Layer& layer = layers[static_cast<size_t>(t.layer)];
      if (!layer.module_of(t.name).empty() || speaks_of_a_router(layer.rest(t.name)) || speaks_of_a_row(t.name))
        continue;
    }
    const bool is_plain = in_plain_layers.contains(without_numbers(t.name)) && is_in_layer;
    const bool is_named = (speaks_of_something_else(t.name) && !speaks_of_experts(t.name) &&
                           (elements(t) != count.experts || is_conclusive(t.name))) ||
                          is_shared(t.name);
    const bool is_explained = is_plain || (is_size_ && is_named) || (is_named && elements(t) != count.experts) ||
                              (is_size_ && contains(t.name, "mlp") && t.shape().size() == 2);
    if (!is_explained) {
      refuse(
          Rule::kExplained,
          cat(t.text(), ": a dimension of ", count.experts,
              is_size_ ? std::string(
                             ", which is a size in config.json too, and the name does not say what this tensor is for")
                       : cat(" outside the experts' module, and no size in config.json is ", count.experts)));
    }
    if (elsewhere_.empty()) elsewhere_ = t.text();
  }
}

size_t Inference::router_of(const Layer& layer, const std::string& module) const {
  std::vector<size_t> pool;
  for (const size_t i : layer.members) {
    const Tensor& t = tensors[i];
    const bool is_of_attention = speaks_of_something_else(layer.rest(t.name)) && !speaks_of_something_else(module);
    if (t.kind == Kind::kOther && t.shape().size() == 2 && speaks_of_a_router(layer.rest(t.name)) && !is_of_attention &&
        !is_shared(t.name) && may_be_weights(t.info->dtype))
      pool.push_back(i);
  }
  const auto is_in_another = [&](size_t i, bool any) {
    return std::ranges::any_of(layer.units, [&](const auto& unit) {
      const std::string& other = unit.first;
      if (other == layer.prefix || (!any && (other == module || module.starts_with(other)))) return false;
      return is_below(tensors[i].name, other);
    });
  };
  std::vector<size_t> near;
  for (const size_t i : pool) {
    const bool is_inside = module == layer.prefix || is_below(tensors[i].name, module);
    if (is_inside && !is_in_another(i, false)) near.push_back(i);
  }
  if (near.empty()) {
    for (const size_t i : pool) {
      if (!is_in_another(i, true)) near.push_back(i);
    }
  }
  const int64_t e = count.experts;
  std::vector<size_t> fit;
  for (const size_t i : near) {
    const auto& shape = tensors[i].shape();
    if (shape[0] == e && shape[1] == e)
      refuse(Rule::kRouter, cat(tensors[i].text(), ": which side counts the experts is not to be seen"));
    if (shape[0] == e) fit.push_back(i);
  }
  if (fit.size() == 1) {
    constexpr int64_t kMostShared = 8;
    const auto& shape = tensors[fit.front()].shape();
    for (const size_t i : near) {
      const auto& other = tensors[i].shape();
      if (i != fit.front() && other[0] > e && other[0] <= e + kMostShared && other[1] == shape[1])
        refuse(Rule::kRouter, cat(tensors[i].text(), ": a second router-like tensor, with more rows than experts"));
    }
    return fit.front();
  }
  if (fit.size() > 1)
    refuse(Rule::kRouter, cat(tensors[fit[0]].text(), " and ", tensors[fit[1]].text(), ": either could be the router"));
  for (const size_t i : near) {
    if (tensors[i].shape()[1] == e)
      refuse(Rule::kRouter, cat(tensors[i].text(), ": a router with a column for each expert"));
  }
  refuse(Rule::kRouter, cat("'", module, "': no router with ", e, " rows",
                            near.empty() ? std::string() : cat("; nearest: ", tensors[near.front()].text())));
}

void Inference::find_routers() {
  for (Layer& layer : layers) {
    for (auto& [module, unit] : layer.units) {
      unit.router = router_of(layer, module);
      tensors[unit.router].kind = Kind::kRouter;
    }
  }
}

void Inference::explain(Layer& layer, size_t index, const std::set<std::string, std::less<>>& router_modules,
                        const std::set<std::string_view>& routers) {
  Tensor& t = tensors[index];
  const std::string_view rest = layer.rest(t.name);
  if (is_shared(rest) || t.shape().empty()) return;
  const std::string_view module = layer.module_of(t.name);
  const bool is_near = !module.empty(), is_named_row = speaks_of_a_row(t.name);
  // Words in the module's own name say where its experts lie: "vision_moe".
  const bool is_in_attention = contains(module, "attn") || contains(module, "attention");
  const std::string_view inside = is_near && !is_in_attention ? t.name.substr(module.size() + 1) : rest;
  const bool is_weights = count.is_quantised ? may_be_weights(t.info->dtype) : is_floating(t.info->dtype);
  if (!is_weights && !speaks_of_something_else(rest))
    refuse(Rule::kRouter, cat(t.text(), ": whole numbers in a layer with experts may name or count experts"));
  const bool hints =
      speaks_of_a_router(rest) || speaks_of_experts(rest) || rest.starts_with("moe") || contains(rest, ".moe");
  const bool is_else = speaks_of_something_else(inside) && !speaks_of_experts(rest) &&
                       (elements(t) != count.experts || is_conclusive(inside));
  if (is_near && !is_else && contains(rest, "lora"))
    refuse(Rule::kExplained,
           cat(t.text(), ": a low-rank matrix in the experts' module, for all experts or for something else"));
  if (!t.has_dim(count.experts)) {
    if (is_named_row)
      refuse(Rule::kExplained,
             cat(t.text(), ": by its name a value for each expert, by its shape not for ", count.experts));
    for (const int64_t size : t.shape()) {
      const bool is_history =
          hints && t.shape().size() == 1 && !t.name.ends_with(".bias") && !t.name.ends_with(".weight");
      if ((is_near || hints) && !is_else && (is_history ? is_multiple(size) : is_strange_multiple(size)))
        refuse(Rule::kExplained, cat(t.text(), ": ", size, " is a multiple of the ", count.experts,
                                     " experts and no size in config.json"));
    }
    return;
  }
  if (elements(t) != count.experts) {
    if (is_else && is_size_) return;
    if (hints || is_near || elsewhere_.empty())
      refuse(Rule::kExplained, cat(t.text(), ": a dimension of ", count.experts, " that is not explained"));
    return;
  }
  const bool is_bias_of_router = (t.name.ends_with(".bias") && router_modules.contains(std::string(stem_of(t.name)))) ||
                                 (t.name.ends_with("_bias") && routers.contains(t.name.substr(0, t.name.rfind('_'))));
  if (is_else && is_size_ && !is_bias_of_router) return;
  if (speaks_of_a_row(telling_word(t.name)) || is_bias_of_router) {
    t.kind = Kind::kRow;
  } else if (hints || is_near) {
    if (is_size_ || !elsewhere_.empty() || is_else || !hints) {
      refuse(Rule::kExplained,
             cat(t.text(), ": ", count.experts, " values, and ", count.experts, " is a size of other things too",
                 elsewhere_.empty() ? std::string() : cat(" (", elsewhere_, ")")));
    }
    t.kind = Kind::kRow;
    notes.push_back(cat(t.text(), ": taken for a value of each expert by its length alone"));
  }
}

/// Other lists with an entry for each expert: norms, adapters, scales by number.
void Inference::check_lists_of_experts(const Layer& layer) const {
  std::map<std::string, std::set<int64_t>> lists;  // name without the last number -> numbers
  for (const size_t i : layer.members) {
    const Tensor& t = tensors[i];
    if (t.kind != Kind::kOther || is_left_alone(t.name) || is_shared(layer.rest(t.name))) continue;
    const SplitName name = split_name(layer.rest(t.name));
    for (size_t k = 0; k < name.words.size(); ++k) {
      const std::string_view word = name.words[k];
      const size_t digits = word.find_last_not_of("0123456789") + 1;
      if (digits == word.size() || word.size() - digits > 6) continue;
      lists[cat(name.joined(0, k), ".", word.substr(0, digits), "#.", name.joined(k + 1, name.words.size()))].insert(
          std::stoll(std::string(word.substr(digits))));
    }
  }
  for (const auto& [name, numbers] : lists) {
    const bool is_list =
        std::cmp_equal(numbers.size(), count.experts) && (*numbers.rbegin() - *numbers.begin() + 1 == count.experts);
    if (is_list)
      refuse(Rule::kExplained, cat("'", layer.prefix, name.starts_with('.') ? "" : ".", name, "': a list of ",
                                   count.experts, ", as many as experts, that is not explained"));
  }
}

void Inference::explain_rest() {
  for (Layer& layer : layers) {
    std::set<std::string, std::less<>> modules;
    std::set<std::string_view> routers;
    for (const auto& [module, unit] : layer.units) {
      routers.insert(tensors[unit.router].name);
      modules.emplace(stem_of(tensors[unit.router].name));
    }
    for (const size_t i : layer.members) {
      if (tensors[i].kind == Kind::kOther && !is_left_alone(tensors[i].name)) explain(layer, i, modules, routers);
    }
    check_lists_of_experts(layer);
  }
  for (const size_t i : vectors_) {
    const Tensor& t = tensors[i];
    const bool counts = t.has_dim(count.experts) ||
                        std::ranges::any_of(t.shape(), [this](int64_t size) { return is_strange_multiple(size); });
    if (t.layer >= 0 && t.kind == Kind::kOther && counts && !is_shared(t.name))
      refuse(Rule::kExplained, cat(t.text(), ": among the experts, ", count.experts, " values"));
  }
  for (const Tensor& t : tensors) {
    if (t.kind != Kind::kOther || is_left_alone(t.name) || is_shared(t.name)) continue;
    if (elsewhere_.empty() && t.has_dim(count.experts))
      refuse(Rule::kExplained, cat(t.text(), ": a dimension of ", count.experts, " that is not explained"));
    if (t.layer < 0 && speaks_of_a_row(t.name))
      refuse(Rule::kExplained, cat(t.text(), ": by its name it belongs to experts, and its layer has none"));
  }
}

}  // namespace coppice::infer::detail
