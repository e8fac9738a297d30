#include "coppice/families/match.h"

#include <algorithm>
#include <functional>
#include <unordered_set>

#include "coppice/base/check.h"

namespace coppice::families {

namespace {

constexpr size_t kMostListed = 20;
constexpr std::string_view kDerivedSuffix = ".rotary_emb.inv_freq";

std::string fill_in(std::string_view name, int64_t layer, int64_t expert) {
  std::string out(name);
  const auto put = [&out](std::string_view mark, int64_t value) {
    if (const size_t at = out.find(mark); at != std::string::npos) out.replace(at, mark.size(), std::to_string(value));
  };
  put("{L}", layer);
  put("{X}", expert);
  return out;
}

TensorSlot make_slot(const ModelConfig& config, const TensorRule& rule, int64_t layer, int64_t expert) {
  return {fill_in(rule.name, layer, expert), &rule, layer, expert, config.shape(rule)};
}

using Visitor = std::function<void(TensorSlot&&)>;

// The rules of one layer; neighbouring rules of experts are taken together, expert by expert.
void visit_layer(const ModelConfig& config, std::span<const TensorRule> rules, int64_t layer, const Visitor& visit) {
  for (size_t i = 0; i < rules.size();) {
    size_t end = i + 1;
    while (rules[i].per_expert() && end < rules.size() && rules[end].per_expert()) ++end;
    const int64_t num_experts =
        rules[i].per_expert() && config.moe_layer[static_cast<size_t>(layer)] ? config.num_experts : 0;
    for (int64_t expert = 0; expert < num_experts; ++expert) {
      for (size_t k = i; k < end; ++k) visit(make_slot(config, rules[k], layer, expert));
    }
    if (!rules[i].per_expert() && config.present(rules[i].when, layer)) visit(make_slot(config, rules[i], layer, -1));
    i = end;
  }
}

void visit_expected(const ModelConfig& config, const Visitor& visit) {
  const auto rules = config.family->tensors;
  for (size_t i = 0; i < rules.size();) {
    if (!rules[i].per_layer()) {
      if (config.present(rules[i].when, -1)) visit(make_slot(config, rules[i], -1, -1));
      ++i;
      continue;
    }
    size_t end = i;
    while (end < rules.size() && rules[end].per_layer()) ++end;
    for (int64_t layer = 0; layer < config.num_layers; ++layer)
      visit_layer(config, rules.subspan(i, end - i), layer, visit);
    i = end;
  }
}

bool is_empty(const TensorSlot& slot) { return std::find(slot.shape.begin(), slot.shape.end(), 0) != slot.shape.end(); }

// The first misses by name, the rest by number.
struct Misses {
  std::vector<std::string> first;
  size_t count = 0;

  void add(const std::string& text) {
    if (++count <= kMostListed) first.push_back(text);
  }
  std::string text() const {
    return cat(join(first), count > first.size() ? cat(", ... (", count - first.size(), " more)") : std::string());
  }
};

}  // namespace

std::vector<TensorSlot> expected_tensors(const ModelConfig& config) {
  std::vector<TensorSlot> slots;
  visit_expected(config, [&](TensorSlot&& slot) { slots.push_back(std::move(slot)); });
  return slots;
}

std::string tensor_name(const ModelConfig& config, Role role, int64_t layer, int64_t expert) {
  for (const TensorRule& rule : config.family->tensors) {
    if (rule.role != role || rule.per_layer() != (layer >= 0) || rule.per_expert() != (expert >= 0)) continue;
    if (config.present(rule.when, layer)) return fill_in(rule.name, layer, expert);
  }
  return {};
}

std::vector<TensorSlot> match(const ModelConfig& config, const io::Checkpoint& checkpoint) {
  std::vector<TensorSlot> slots;
  std::unordered_set<std::string> placed;
  Misses missing, unknown, misshapen;
  visit_expected(config, [&](TensorSlot&& slot) {
    if (!checkpoint.contains(slot.name)) {
      if (!is_empty(slot)) missing.add(slot.name);
      return;
    }
    const auto& found = checkpoint.at(slot.name).info->shape;
    if (found != slot.shape)
      misshapen.add(cat(slot.name, " is ", shape_text(found), ", wanted ", shape_text(slot.shape)));
    placed.insert(slot.name);
    slots.push_back(std::move(slot));
  });
  for (const std::string& name : checkpoint.names()) {
    if (!placed.contains(name) && !name.ends_with(kDerivedSuffix)) unknown.add(name);
  }

  const std::string subject = cat(checkpoint.directory(), ": ");
  std::vector<std::string> faults;
  if (missing.count > 0) faults.push_back(cat(missing.count, " missing: ", missing.text()));
  if (unknown.count > 0) faults.push_back(cat(unknown.count, " unknown: ", unknown.text()));
  if (misshapen.count > 0)
    faults.push_back(cat(misshapen.count, " of another shape than config.json says: ", misshapen.text()));
  if (faults.empty()) return slots;
  throw Error(
      missing.count + unknown.count > 0 ? ErrorCode::kFormat : ErrorCode::kShape,
      cat(subject, "the tensors are not those of a ", config.family->model_type,
          " model with this config.json: ", join(faults, "; "), " (are weights and config.json of the same model?)"));
}

std::string Model::digest() const {
  std::vector<std::string> names;
  for (const TensorSlot& slot : slots) {
    if (part_of(slot.role()) == Part::kRouters) names.push_back(slot.name);
  }
  return io::model_digest(checkpoint, names);
}

Model open_model(const std::filesystem::path& directory) {
  auto checkpoint = io::Checkpoint::open(directory);
  auto config = read_config(checkpoint.config(), (directory / "config.json").string());
  auto slots = match(config, checkpoint);
  return {std::move(checkpoint), std::move(config), std::move(slots)};
}

int64_t& ParameterCount::part(Part part) {
  switch (part) {
    case Part::kEmbeddings: return embeddings;
    case Part::kAttention: return attention;
    case Part::kDense: return dense;
    case Part::kShared: return shared;
    case Part::kRouters: return routers;
    case Part::kExperts: return experts;
    case Part::kNorms: return norms;
  }
  COPPICE_CHECK(false, "part ", static_cast<int>(part));
}

ParameterCount count_parameters(const ModelConfig& config) {
  ParameterCount count;
  for (const TensorRule& rule : config.family->tensors) {
    if (rule.role == Role::kSelectionBias) continue;
    int64_t elements = rule.per_expert() ? config.num_experts : 1;
    for (const int64_t size : config.shape(rule)) elements *= size;
    if (rule.per_layer()) {
      int64_t layers = 0;
      for (int64_t layer = 0; layer < config.num_layers; ++layer) layers += config.present(rule.when, layer) ? 1 : 0;
      elements *= layers;
    } else if (!config.present(rule.when, -1)) {
      continue;
    }
    count.part(part_of(rule.role)) += elements;
    count.total += elements;
  }
  count.active = count.total;
  if (config.is_moe()) count.active -= count.experts / config.num_experts * (config.num_experts - config.top_k);
  return count;
}

}  // namespace coppice::families
