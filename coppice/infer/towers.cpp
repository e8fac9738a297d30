// Rule 3: all layers of a list have the same set of tensors; and the lists of a model that has several.

#include <algorithm>
#include <tuple>
#include <utility>

#include "coppice/base/words.h"
#include "coppice/infer/inference_detail.h"
#include "coppice/infer/refuse_detail.h"

namespace coppice::infer::detail {

namespace {

/// The name of a tensor in its layer, the expert's number as '#'.
std::string name_in_layer(const Tensor& tensor, const Layer& layer) {
  const std::string_view rest = layer.rest(tensor.name);
  const SplitName name = split_name(rest);
  if (tensor.kind != Kind::kNumbered || !name.number_at) return std::string(rest);
  const std::string_view word = name.words[*name.number_at];
  return cat(name.joined(0, *name.number_at), ".", word.substr(0, word.find_last_not_of("0123456789") + 1), "#.",
             name.joined(*name.number_at + 1, name.words.size()));
}

}  // namespace

void Inference::compare_layers() {
  using Part = std::tuple<std::string, Kind>;
  std::map<std::string, std::pair<std::set<Part>, const Layer*>> first;  // by the tower's name without numbers
  std::map<std::string, Tower> found;
  for (const Layer& layer : layers) {
    std::set<Part> parts;
    for (const size_t i : layer.members) {
      if (tensors[i].kind != Kind::kOther) parts.emplace(name_in_layer(tensors[i], layer), tensors[i].kind);
    }
    Tower& tower = found.try_emplace(layer.tower, Tower{.name = layer.tower}).first->second;
    tower.is_numbered = layer.number >= 0;
    tower.last = std::max(tower.last, layer.number);
    ++tower.layers;
    const auto [at, is_new] = first.try_emplace(without_numbers(layer.tower), parts, &layer);
    if (!is_new && at->second.first != parts) {
      refuse(Rule::kRouter, cat("'", layer.prefix, "' and '", at->second.second->prefix,
                                "' differ in the tensors that belong to experts"));
    }
  }
  for (auto& [name, tower] : found) towers.push_back(std::move(tower));
  std::ranges::stable_sort(towers, [](const Tower& a, const Tower& b) {
    return std::pair(a.is_numbered, a.layers) > std::pair(b.is_numbered, b.layers);
  });
  check_towers();
  number_towers();
}

void Inference::check_towers() const {
  if (!towers.front().is_numbered)
    refuse(Rule::kExperts, cat("'", towers.front().name, "': experts in no list of layers"));
  if (count.is_repeated && towers.size() > 1) {
    refuse(Rule::kCount, cat("experts in '", towers[0].name, "' and in '", towers[1].name, "', and '",
                             count.keys.front(), "' is in the whole config.json and in ", count.text_key));
  }
  constexpr std::string_view kOther[] = {"vis",     "vit",       "image", "audio",   "speech",
                                         "video",   "talker",    "code2", "whisper", "projector",
                                         "adapter", "connector", "align", "resampl", "percei"};
  for (const Tower& tower : towers) {
    if (contains_any(tower.name, kOther) && towers.size() > 1)
      refuse(Rule::kCount, cat("experts in '", tower.name, "' and elsewhere, and one key counts ", count.experts));
  }
  constexpr size_t kMost = 64;
  if (towers.size() > kMost) {
    refuse(Rule::kExperts, cat("experts in more than ", kMost, " lists of layers, of which one is '",
                               towers.front().name, "' and another '", towers.back().name, "'"));
  }
}

void Inference::number_towers() {
  const Json* stated = count.part->find("num_hidden_layers");
  const bool is_stated = stated != nullptr && stated->kind() == Json::Kind::kInt;
  const int64_t num_layers = is_stated ? stated->as_int() : 0;
  if (is_stated && towers.size() == 2 && towers[1].is_numbered && towers[0].last < num_layers) {
    towers[1].counts_from_last = true;
    return;
  }
  int64_t next = std::max(num_layers, towers[0].last + 1);
  for (size_t i = 1; i < towers.size(); ++i) {
    towers[i].first_layer = next;
    next += std::max<int64_t>(towers[i].last, 0) + 1;
  }
}

}  // namespace coppice::infer::detail
