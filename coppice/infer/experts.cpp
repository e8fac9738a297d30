// Rule 2: the tensors of experts, numbered or stacked.

#include <algorithm>
#include <optional>
#include <utility>

#include "coppice/base/words.h"
#include "coppice/infer/inference_detail.h"
#include "coppice/infer/refuse_detail.h"

namespace coppice::infer::detail {
namespace {

bool is_one_of(std::string_view word, std::initializer_list<std::string_view> words) {
  return std::ranges::find(words, word) != words.end();
}

bool has_control(std::string_view name) {
  return std::ranges::any_of(name, [](unsigned char c) { return c < 0x20 || c == 0x7f; });
}

/// One tensor of every expert of a module: "up_proj.weight".
struct Seen {
  size_t first = 0;           // tensor
  std::vector<bool> numbers;  // of experts
};
struct Box {
  std::map<std::string, Seen> suffixes;
  SplitName first;  // the name of one of its tensors
  std::vector<size_t> members;
};

/// The prefix of the layer that the first `end` words lead into; without a number it is the module around that of the
/// experts: "mtp" of "mtp.mlp.experts". Empty if there is no such module.
std::string layer_of(const SplitName& name, size_t end) {
  const std::string numbered = layer_prefix(name, end);
  return numbered.empty() ? name.joined(0, end > 1 ? end - 1 : end) : numbered;
}

bool is_numbered_layer(std::string_view prefix) { return is_digits(prefix.substr(prefix.rfind('.') + 1)); }

/// Below each expert "0.weight", "2.weight": the modules of a sequence, or, if they are alike and as many as experts, a
/// second list that may be the experts. The words in front of such a number; none if there is no such list.
std::optional<std::string> second_list(const Box& box, std::span<const Tensor> tensors, int64_t experts) {
  using Alike = std::set<std::string>;                    // suffix, dtype and shape
  std::map<std::string, std::map<int64_t, Alike>> lists;  // by the words in front of the number
  for (const auto& [suffix, seen] : box.suffixes) {
    const SplitName name = split_name(suffix);
    for (size_t i = 0; i < name.words.size(); ++i) {
      if (!is_digits(name.words[i])) continue;
      const io::TensorInfo& info = *tensors[seen.first].info;
      lists[name.joined(0, i)][std::stoll(std::string(name.words[i]))].insert(
          cat(name.joined(i + 1, name.words.size()), " ", io::dtype_name(info.dtype), " ", shape_text(info.shape)));
    }
  }
  for (const auto& [words, list] : lists) {
    const bool has_all =
        std::cmp_equal(list.size(), experts) && list.begin()->first == 0 && list.rbegin()->first == experts - 1;
    const bool are_alike =
        std::ranges::all_of(list, [&list](const auto& one) { return one.second == list.begin()->second; });
    if (has_all && are_alike) return words;
  }
  return std::nullopt;
}

}  // namespace

bool Tensor::has_dim(int64_t size) const { return std::ranges::find(shape(), size) != shape().end(); }

std::string Tensor::text() const { return cat("'", name, "' ", io::dtype_name(info->dtype), " ", shape_text(shape())); }

std::string_view Layer::module_of(std::string_view name) const {
  std::string_view best;
  for (const auto& [module, unit] : units) {
    if (module != prefix && module.size() > best.size() && is_below(name, module)) best = module;
  }
  return best;
}

Inference::Inference(std::span<const io::TensorInfo* const> infos, ExpertCount counted) : count(std::move(counted)) {
  tensors.reserve(infos.size());
  for (const io::TensorInfo* info : infos) tensors.push_back({.name = info->name.view(), .info = info});
  sizes_ = dimensions_in(*count.part);
  is_size_ = sizes_.contains(count.experts);
}

bool Inference::is_left_alone(std::string_view name) const {
  return std::ranges::any_of(left_alone_, [name](const std::string& module) { return is_below(name, module); });
}

Unit& Inference::unit(const std::string& layer, const std::string& module) {
  const auto [at, is_new] = layer_at_.emplace(layer, layers.size());
  if (is_new) {
    const size_t number_at = layer.rfind('.') + 1;
    const bool is_numbered = is_numbered_layer(layer);
    layers.push_back({.prefix = layer,
                      .tower = is_numbered ? layer.substr(0, std::max<size_t>(number_at, 1) - 1) : layer,
                      .number = is_numbered ? std::stoll(layer.substr(number_at)) : -1,
                      .units = {},
                      .members = {}});
  }
  return layers[at->second].units[module];
}

void Inference::find_numbered() {
  std::map<std::string, Box> boxes;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].name.find_first_of("*{}#\"\\") != std::string_view::npos || has_control(tensors[i].name))
      refuse(Rule::kExperts, cat("'", tensors[i].name, "': characters that a family file cannot have in a name"));
    const SplitName name = split_name(tensors[i].name);
    if (!name.number_at) continue;
    const bool is_in_word = *name.number_at == *name.container_at;
    const std::string module = name.joined(0, *name.container_at);
    Box& box = boxes[cat(module, module.empty() ? "" : ".", is_in_word ? "expert_#" : name.words[*name.container_at])];
    if (box.members.empty()) box.first = name;
    box.members.push_back(i);
    const auto [at, is_new] =
        box.suffixes.try_emplace(name.joined(*name.number_at + 1, name.words.size()), Seen{i, {}});
    const auto expert = static_cast<size_t>(name.expert());
    if (expert >= static_cast<size_t>(families::kMaxExperts))
      refuse(Rule::kExperts, cat(tensors[i].text(), ": an expert of that number"));
    std::vector<bool>& numbers = at->second.numbers;
    if (numbers.size() <= expert) numbers.resize(expert + 1);
    numbers[expert] = true;
    const Tensor& first = tensors[at->second.first];
    if (first.shape() != tensors[i].shape() || first.info->dtype != tensors[i].info->dtype)
      refuse(Rule::kExperts, cat(tensors[i].text(), "; ", first.text(), " of another expert differs"));
  }
  for (auto& [path, box] : boxes) {
    size_t experts = 0;
    for (const auto& [suffix, seen] : box.suffixes) experts = std::max(experts, seen.numbers.size());
    for (const auto& [suffix, seen] : box.suffixes) {
      const auto missing = std::ranges::find(seen.numbers, false);
      const size_t number = static_cast<size_t>(missing - seen.numbers.begin());
      if (number < experts)
        refuse(Rule::kExperts, cat("'", path, "': expert ", number, " has no '", suffix, "', but others have"));
    }
    const std::string module = box.first.joined(0, *box.first.container_at);
    if (std::cmp_not_equal(experts, count.experts)) {
      if (!count.others.contains(static_cast<int64_t>(experts))) {
        refuse(Rule::kExperts, cat("'", path, "' has ", experts, " experts, but config.json: '", count.keys.front(),
                                   "' is ", count.experts));
      }
      left_alone_.insert(module);
      notes.push_back(cat("'", path, "': ", experts, " experts of another part of config.json, left alone"));
      continue;
    }
    if (const auto words = second_list(box, tensors, count.experts)) {
      refuse(Rule::kExperts, cat("'", path, "': each of its ", experts, " parts has again a list of ", experts,
                                 words->empty() ? "" : ", ", *words, "; either could be the experts"));
    }
    const std::string layer = layer_of(box.first, *box.first.container_at);
    if (layer.empty()) refuse(Rule::kExperts, cat("'", path, "': no layer number in front of the experts"));
    Unit& found = unit(layer, module);
    if (found.is_numbered)
      refuse(Rule::kExperts, cat("'", path, "': a second list of ", count.experts, " experts in one module"));
    found.is_numbered = true;
    for (const size_t i : box.members) tensors[i].kind = Kind::kNumbered;
  }
  for (const Layer& layer : layers) {
    for (const auto& [module, unit] : layer.units) {
      if (left_alone_.contains(module))
        refuse(Rule::kExperts, cat("'", module, "': experts of two parts of config.json in one module"));
    }
  }
}

void Inference::find_stacked() {
  std::map<std::pair<std::string, std::string>, std::vector<size_t>> stacks;  // layer and module
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& t = tensors[i];
    if (t.kind != Kind::kOther || is_shared(t.name) || is_left_alone(t.name)) continue;
    const SplitName name = split_name(t.name);
    const auto container = stack_container(name);
    const std::string numbered = layer_prefix(name, name.words.size());
    const std::string layer = numbered.empty() && container ? layer_of(name, *container) : numbered;
    if (layer.empty()) continue;
    if (container && name.joined(0, *container + 1).size() > layer.size()) {
      const bool may_be_router = t.shape().size() < 2 || (t.shape().size() == 2 && t.shape()[0] == count.experts);
      if (may_be_router && speaks_of_a_router(name.joined(*container + 1, name.words.size()))) continue;  // jetmoe
      stacks[{layer, name.joined(0, *container)}].push_back(i);
      continue;
    }
    const bool is_stack =
        t.shape().size() >= 3 && t.shape()[0] == count.experts && std::ranges::min(std::span(t.shape()).subspan(1)) > 1;
    if (!is_stack || speaks_of_something_else(t.name)) continue;
    constexpr std::string_view kUsual[] = {"moe", "exp", "ffn",  "mlp",   "feed_forward", "w1",
                                           "w2",  "w3",  "w_in", "w_out", "linear"};
    if (!contains_any(t.name, kUsual)) continue;
    if (is_size_ && !contains(t.name, "moe") && !speaks_of_experts(t.name)) {
      refuse(Rule::kExperts, cat(t.text(), ": ", count.experts,
                                 " is the number of experts and a size in config.json too, "
                                 "and the name does not say that this tensor belongs to experts"));
    }
    size_t words = name.words.size();
    if (is_one_of(name.words.back(), {"weight", "bias", "scales", "blocks", "weight_scale", "weight_scale_inv"}))
      --words;
    stacks[{layer, name.joined(0, std::max<size_t>(words, 1) - 1)}].push_back(i);
  }
  for (const auto& [where, members] : stacks) {
    const bool has_stack = std::ranges::any_of(
        members, [this](size_t i) { return tensors[i].shape().size() >= 3 && tensors[i].shape()[0] == count.experts; });
    if (has_stack || is_numbered_layer(where.first)) place_stack(where.first, where.second, members);
  }
  if (!layers.empty()) return;
  refuse(Rule::kExperts, cat("config.json: '", count.keys.front(), "' is ", count.experts,
                             ", and no tensors look like ", count.experts, " experts"));
}

void Inference::place_stack(const std::string& layer, const std::string& module, const std::vector<size_t>& members) {
  std::vector<size_t> matrices, flat;
  for (const size_t i : members) {
    const size_t dims = tensors[i].shape().size();
    (dims >= 3 ? matrices : dims == 2 ? flat : vectors_).push_back(i);
  }
  if (matrices.empty() && flat.empty()) return;
  const auto has_experts_at = [&](size_t axis) {
    return std::ranges::all_of(matrices, [&](size_t i) {
      return axis < tensors[i].shape().size() && tensors[i].shape()[axis] == count.experts;
    });
  };
  if (!matrices.empty() && !has_experts_at(0)) {
    const bool is_others =
        std::ranges::all_of(matrices, [&](size_t i) { return count.others.contains(tensors[i].shape()[0]); });
    if (!is_others) {
      refuse(Rule::kExperts, cat(tensors[matrices.front()].text(), ": the first dimension is not the ", count.experts,
                                 " experts of '", count.keys.front(), "'"));
    }
    left_alone_.insert(module);
    notes.push_back(cat("'", module, "': experts of another part of config.json, left alone"));
    return;
  }
  const Unit& found = unit(layer, module);
  if (matrices.empty()) return place_flat(module, flat, found);
  for (const size_t axis : {size_t{1}, size_t{2}}) {
    if (!has_experts_at(axis)) continue;
    refuse(Rule::kExperts,
           cat(tensors[matrices.front()].text(), " and its neighbours have ", count.experts,
               " in dimension 0 and in dimension ", axis, ": which one counts experts is not to be seen"));
  }
  for (const size_t i : flat) {
    const bool says = contains(tensors[i].name, "bias") || contains(tensors[i].name, "scale");
    if (tensors[i].shape()[0] == count.experts && is_size_ && !says) {
      refuse(Rule::kExperts, cat(tensors[i].text(), " lies among stacked experts, and ", count.experts,
                                 " is also another size in config.json"));
    }
    if (tensors[i].shape()[0] != count.experts) {
      refuse(Rule::kExperts,
             cat(tensors[i].text(), " lies among stacked experts, and its first dimension is not ", count.experts));
    }
  }
  for (const auto* stacked : {&matrices, &flat}) {
    for (const size_t i : *stacked) tensors[i].kind = Kind::kStacked;
  }
}

void Inference::place_flat(const std::string& module, const std::vector<size_t>& members, const Unit& found) {
  const Tensor& first = tensors[members.front()];
  if (found.is_numbered) refuse(Rule::kExperts, cat(first.text(), " lies beside numbered experts and has no number"));
  const int64_t rows = first.shape()[0];
  const bool are_alike = std::ranges::all_of(members, [&](size_t i) { return tensors[i].shape()[0] == rows; });
  constexpr std::string_view kUsual[] = {"gate", "up",     "down", "w1",   "w2", "w3",
                                         "v1",   "linear", "fc",   "proj", "wi", "wo"};
  const bool has_strange = std::ranges::any_of(
      members, [&](size_t i) { return !contains_any(tensors[i].name.substr(module.size()), kUsual); });
  const bool has_number = std::ranges::any_of(members, [&](size_t i) {
    const std::string_view name = tensors[i].name;
    return is_digits(name.substr(name.size() - 1)) && name.substr(0, name.size() - 1).ends_with("weight");
  });
  if (members.size() < 2 || !are_alike || has_number || has_strange || sizes_.contains(rows) ||
      rows % count.experts != 0 || rows == count.experts || !is_size_in_config(rows / count.experts)) {
    refuse(Rule::kExperts, cat(first.text(), " in '", module, "': its rows are not ", count.experts,
                               " times a size that config.json has"));
  }
  for (const size_t i : members) tensors[i].kind = Kind::kStacked;
}

bool Inference::is_size_in_config(int64_t size) const {
  constexpr std::string_view kSizes[] = {"ffn", "intermediate"};
  return std::ranges::any_of(whole_numbers(*count.part), [&](const auto& number) {
    return number.second == size && contains_any(number.first, kSizes);
  });
}

}  // namespace coppice::infer::detail
