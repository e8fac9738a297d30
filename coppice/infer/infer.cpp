#include "coppice/infer/infer.h"

#include <algorithm>
#include <map>
#include <set>

#include "coppice/base/text.h"
#include "coppice/base/words.h"
#include "coppice/families/match.h"
#include "coppice/infer/inference_detail.h"
#include "coppice/infer/refuse_detail.h"

namespace coppice::infer {
namespace {

using detail::Inference;
using detail::Layer;
using detail::Tensor;

/// The role that the name of an expert's tensor suggests. Only a hint for the reader.
std::string_view guess_of(std::string_view name) {
  const auto has = [&](std::initializer_list<std::string_view> words) { return contains_any(name, words); };
  if (has({"scale", "zero", "absmax", "quant", "shape", "g_idx", "bias"})) return {};
  if (has({"gate_up", "w13", "gateup", "up_gate"})) return "expert_gate_up";
  if (has({"down", "w2", "fc2", "wo.", "output_linear", "out_proj"})) return "expert_down";
  if (has({"gate", "w1"})) return "expert_gate";
  if (has({"up", "w3", "v1", "fc1", "wi.", "input_linear"})) return "expert_up";
  return {};
}

/// The name as in a family file: the numbers of layer and expert as marks, other numbers as they are. `mark` is {L} or
/// {M}.
std::string pattern_of(const Layer& layer, const Tensor& tensor, std::string_view mark, const ExpertCount& count) {
  const SplitName name = split_name(tensor.name);
  const SplitName prefix = split_name(layer.prefix);
  const size_t layer_at = layer.number >= 0 ? prefix.words.size() - 1 : std::string_view::npos;
  std::string out;
  for (size_t i = 0; i < name.words.size(); ++i) {
    const std::string_view word = name.words[i];
    if (i > 0) out += '.';
    if (i == layer_at) {
      out += mark;
    } else if (tensor.kind == Kind::kNumbered && name.number_at == i) {
      out += cat(word.substr(0, word.find_last_not_of("0123456789") + 1), "{X}");
    } else {
      out += word;
    }
  }
  return count.text_key.empty() ? out : families::without_text_prefix(out);
}

std::string role_of(const Tensor& tensor) {
  switch (tensor.kind) {
    case Kind::kRouter: return "router";
    case Kind::kRow: return "expert_scale";
    default: return "expert_other";
  }
}

std::vector<InferredTensor> kinds_of(const Inference& found) {
  std::map<std::string, InferredTensor> kinds;
  for (const Layer& layer : found.layers) {
    const auto tower = std::ranges::find(found.towers, layer.tower, &Inference::Tower::name);
    const std::string_view mark = tower->counts_from_last ? "{M}" : "{L}";
    for (const size_t i : layer.members) {
      const Tensor& t = found.tensors[i];
      if (t.kind == Kind::kOther) continue;
      InferredTensor& kind = kinds[pattern_of(layer, t, mark, found.count)];
      if (++kind.count > 1) continue;
      kind.kind = t.kind;
      kind.first_layer = tower->first_layer;
      kind.shape = shape_text(t.shape());
      kind.role = role_of(t);
      if (t.kind == Kind::kRow) {
        kind.guess = "selection_bias or router_bias";
      } else if (t.kind != Kind::kRouter) {
        const SplitName name = split_name(t.name);
        const size_t words = name.words.size();
        kind.guess = guess_of(name.joined(words - std::min<size_t>(words, 2), words));
      }
    }
  }
  std::vector<InferredTensor> out;
  for (auto& [name, kind] : kinds) {
    kind.name = name;
    out.push_back(std::move(kind));
  }
  std::ranges::stable_sort(out, {}, [](const InferredTensor& t) {
    return t.kind == Kind::kRouter ? 0 : t.kind == Kind::kRow ? 1 : 2;
  });
  return out;
}

std::vector<std::string> tops_of(const Inference& found) {
  std::set<std::string> tops;
  for (const Tensor& t : found.tensors) {
    const std::string name = found.count.text_key.empty() ? std::string(t.name) : families::without_text_prefix(t.name);
    const size_t dot = name.find('.');
    tops.insert(dot == std::string::npos ? name : cat(name.substr(0, dot), ".**"));
  }
  return {tops.begin(), tops.end()};
}

bool goes_past_last_layer(const Inference& found) {
  const Json* layers = found.count.part->find("num_hidden_layers");
  if (layers == nullptr || layers->kind() != Json::Kind::kInt) return false;
  return std::ranges::any_of(found.layers, [&](const Layer& layer) {
    return layer.tower == found.towers.front().name && layer.number >= layers->as_int();
  });
}

Kind kind_of(const families::TensorSlot& slot) {
  switch (slot.role()) {
    case families::Role::kRouter: return Kind::kRouter;
    case families::Role::kExpertScale: return Kind::kRow;
    case families::Role::kExpertOther: return slot.rule->layout.stacked ? Kind::kStacked : Kind::kNumbered;
    default: return Kind::kOther;
  }
}

}  // namespace

Inferred infer(const io::Checkpoint& checkpoint) {
  std::vector<const io::TensorInfo*> tensors;
  tensors.reserve(checkpoint.entries().size());
  for (const auto& entry : checkpoint.entries()) tensors.push_back(entry.info);
  return infer(checkpoint.config(), tensors);
}

Inferred infer(const Json& config, std::span<const io::TensorInfo* const> tensors) {
  Inference found(tensors, count_experts(config));
  found.find_numbered();
  found.find_stacked();
  found.find_members();
  found.find_routers();
  found.explain_rest();
  found.refuse_token_tables();
  found.compare_layers();
  Inferred out{.count = found.count,
               .tensors = kinds_of(found),
               .towers = {},
               .carried = 0,
               .has_mtp = goes_past_last_layer(found),
               .notes = found.notes,
               .tops = tops_of(found),
               .kinds = {}};
  for (const Inference::Tower& tower : found.towers) out.towers.push_back(tower.name);
  for (const Tensor& t : found.tensors) {
    out.carried += t.kind == Kind::kOther ? 1 : 0;
    out.kinds.push_back(t.kind);
  }
  out.count.part = nullptr;  // the configuration may not live as long
  return out;
}

InferredFamily infer_family(io::Checkpoint checkpoint) {
  Inferred inferred = infer(checkpoint);
  auto file = families::FamilyFile::from_json(inferred.to_json(), cat(checkpoint.directory(), ": inferred family"));
  InferredFamily out{std::move(inferred), std::move(file)};
  out.file.family().is_inferred = true;
  auto config =
      families::read_config(checkpoint.config(), (checkpoint.directory() / "config.json").string(), &out.file.family());
  const families::Model model = families::make_model(std::move(checkpoint), std::move(config));
  std::vector<Kind> placed(out.inferred.kinds.size(), Kind::kOther);
  for (const families::TensorSlot& slot : model.slots) {
    const auto at = model.checkpoint.find(slot.name);
    if (at) placed[*at] = kind_of(slot);
  }
  for (size_t i = 0; i < placed.size(); ++i) {
    if (placed[i] == out.inferred.kinds[i]) continue;
    const io::TensorInfo& info = *model.checkpoint.entries()[i].info;
    detail::refuse(detail::Rule::kExperts,
                   cat("'", info.name, "' ", shape_text(info.shape),
                       ": its name fits the rule of other tensors, which belong to experts or do not"));
  }
  return out;
}

}  // namespace coppice::infer
