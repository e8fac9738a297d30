#include <algorithm>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/families/packed_layout.h"
#include "coppice/families/placements_detail.h"
#include "coppice/families/quantization.h"

namespace coppice::families {

namespace detail {

namespace {

constexpr size_t kSampled = 2000;  // number of names; of a large model every n-th name

struct Fit {
  const Family* family = nullptr;
  size_t placed = 0, seen = 0;
  std::vector<std::string> first_unplaced;
};

Fit fit_of(const Family& family, const std::vector<io::Checkpoint::Entry>& tensors) {
  constexpr size_t kListed = 5;
  const RuleIndex index(family);
  Fit fit{&family, 0, 0, {}};
  const size_t step = std::max<size_t>(1, tensors.size() / kSampled);
  for (size_t i = 0; i < tensors.size(); i += step) {
    ++fit.seen;
    if (index.find(tensors[i].info->name, 0)) {
      ++fit.placed;
    } else if (fit.first_unplaced.size() < kListed) {
      fit.first_unplaced.push_back(tensors[i].info->name);
    }
  }
  return fit;
}

Fit nearest_fit(const io::Checkpoint& checkpoint) {
  Fit best;
  for (const Family* family : all_families()) {
    Fit fit = fit_of(*family, checkpoint.entries());
    if (fit.placed > best.placed) best = std::move(fit);
  }
  return best;
}

}  // namespace

const Family* nearest_family(const io::Checkpoint& checkpoint) {
  const Fit best = nearest_fit(checkpoint);
  return 3 * best.placed < best.seen ? nullptr : best.family;
}

}  // namespace detail

namespace {

// For an unknown model_type: which family its tensors suggest.
[[noreturn]] void refuse_unknown(const Error& error, const io::Checkpoint& checkpoint) {
  const detail::Fit fit = detail::nearest_fit(checkpoint);
  if (fit.family == nullptr) throw Error(error.code, error.what());
  throw Error(error.code, cat(error.what(), "; its tensors are most similar to those of '", fit.family->model_type,
                              fit.first_unplaced.empty() ? "', which matches all that were tried"
                                                         : cat("', which does not know ", join(fit.first_unplaced))));
}

int64_t layers_in(const std::vector<TensorSlot>& slots) {
  int64_t layers = 0;
  for (const TensorSlot& slot : slots) layers = std::max(layers, slot.layer + 1);
  return layers;
}

}  // namespace

void fill_in_from(const std::vector<TensorSlot>& slots, ModelConfig& config) {
  if (config.num_layers == 0) config.num_layers = layers_in(slots);
  config.moe_layer.assign(static_cast<size_t>(config.num_layers), false);
  std::set<Role> roles;
  for (const TensorSlot& slot : slots) {
    roles.insert(slot.role());
    if (!is_expert(slot.role())) continue;
    if (slot.layer < config.num_layers) config.moe_layer[static_cast<size_t>(slot.layer)] = true;
    if (slot.role() == Role::kExpertDown && !config.is_quantised())
      config.expert_width = detail::sides_of(slot, config.num_experts).width;
  }
  config.routing.has_selection_bias = config.routing.adds_selection_bias && roles.contains(Role::kSelectionBias);
  config.routing.has_router_bias = roles.contains(Role::kRouterBias);
  config.routing.has_expert_table = roles.contains(Role::kExpertTable);
}

// Stored repetitions of the embeddings in a tied model.
namespace {

constexpr TensorRule kTiedCopy{"", Role::kTiedCopy, {}, When::kOptional};
constexpr TensorRule kOwnHead{"", Role::kEmbeddings, {}, When::kOptional};

bool same_bytes(const io::Checkpoint& checkpoint, const std::string& a, const std::string& b) {
  constexpr uint64_t kPieceBytes = uint64_t{4} << 20;
  const auto one = checkpoint.at(a), other = checkpoint.at(b);
  if (one.info->dtype != other.info->dtype || one.info->shape != other.info->shape) return false;
  std::vector<std::byte> left, right;
  for (uint64_t at = 0; at < one.info->bytes; at += kPieceBytes) {
    left.resize(std::min(kPieceBytes, one.info->bytes - at));
    right.resize(left.size());
    one.file->read(one.info->offset + at, left);
    other.file->read(other.info->offset + at, right);
    if (left != right) return false;
  }
  return true;
}

bool is_embedding(const TensorSlot& slot) {
  constexpr std::string_view kNames[] = {"embed_tokens.weight", "word_embeddings.weight", "wte.weight",
                                         "embeddings.weight", "shared.weight"};
  return std::ranges::any_of(kNames, [&slot](std::string_view name) { return slot.name.ends_with(name); });
}

bool is_head(const TensorSlot& slot) { return slot.name.ends_with("lm_head.weight"); }

/// Marks heads of a tied model, and embeddings of encoder and decoder, that repeat the shared embeddings. A head that
/// differs is a separate head, as in transformers 5 (earlier versions overwrite it).
void mark_tied_copies(const io::Checkpoint& checkpoint, ModelConfig& config, std::vector<TensorSlot>& slots) {
  const auto shared =
      std::ranges::find_if(slots, [](const TensorSlot& s) { return s.name.ends_with("shared.weight"); });
  const auto source = shared != slots.end() ? shared : std::ranges::find_if(slots, is_embedding);
  if (source == slots.end()) return;
  for (TensorSlot& slot : slots) {
    if (&slot == &*source || slot.layer >= 0) continue;
    const bool is_tied_head = config.tied && is_head(slot);
    const bool is_tied_embedding = shared != slots.end() && is_embedding(slot);
    if (!is_tied_head && !is_tied_embedding) continue;
    if (same_bytes(checkpoint, source->name, slot.name)) {
      slot.rule = &kTiedCopy;
    } else if (is_tied_head) {
      slot.rule = &kOwnHead;
      config.unsupported_in_nn.push_back(
          cat("'", slot.name, "' beside '", source->name,
              "', but differs from it (set tie_word_embeddings to false to use it, or remove it from the files),"));
    }
  }
}

}  // namespace

std::string Model::digest() const {
  std::vector<std::string> names;
  for (const TensorSlot& slot : slots) {
    if (component_of(slot.role()) == Component::kRouters) names.push_back(slot.name);
  }
  return io::model_digest(checkpoint, names);
}

const QuantisedTensor* Model::quantised(std::string_view name) const {
  if (!stored) return nullptr;
  const auto found = stored->tensors.find(name);
  return found == stored->tensors.end() ? nullptr : &found->second;
}

io::TensorInfo Model::info_of(std::string_view name) const {
  const QuantisedTensor* const parts = quantised(name);
  if (parts == nullptr) return *checkpoint.at(name).info;
  io::TensorInfo info{.name = name, .dtype = io::Dtype::kBf16, .shape = parts->shape};
  info.bytes = static_cast<uint64_t>(info.elements()) * io::dtype_bytes(info.dtype);
  return info;
}

Model with_tensors(Model stored, const Json& json, std::span<const io::TensorInfo> tensors) {
  const std::string source = (stored.checkpoint.directory() / "config.json").string();
  ModelConfig config = read_config(json, source, stored.config.family);
  auto slots = detail::match_tensors(config, stored.checkpoint, tensors);
  for (const TensorSlot& before : stored.slots) {
    if (before.role() != Role::kTiedCopy) continue;
    for (TensorSlot& slot : slots) {
      if (slot.name == before.name) slot.rule = before.rule;
    }
  }
  fill_in_from(slots, config);
  return {std::move(stored.checkpoint), std::move(config), std::move(slots), std::move(stored.layers_with_experts)};
}

Model make_model(io::Checkpoint checkpoint, ModelConfig config) {
  config.family = &stored_layout(config, checkpoint);
  auto slots = match(config, checkpoint);
  mark_tied_copies(checkpoint, config, slots);
  if (config.placed_by_weights()) fill_in_from(slots, config);
  std::set<int64_t> layers;
  for (const TensorSlot& slot : slots) {
    if (is_expert(slot.role())) layers.insert(slot.layer);
  }
  return {std::move(checkpoint), std::move(config), std::move(slots), {layers.begin(), layers.end()}};
}

Model open_model(const std::filesystem::path& directory, const Family* family) {
  auto checkpoint = io::Checkpoint::open(directory);
  const auto read = [&] {
    try {
      return read_config(checkpoint.config(), (directory / "config.json").string(), family);
    } catch (const Error& error) {
      const Json* type = checkpoint.config().find("model_type");
      const bool is_known = type != nullptr && type->is_string() && detail::is_refused(type->as_string());
      if (error.code != ErrorCode::kUnsupported || family != nullptr || is_known) throw;
      refuse_unknown(error, checkpoint);
    }
  };
  ModelConfig config = read();
  const ModelConfig known = config;
  return naming_quantisation(known, [&] { return make_model(std::move(checkpoint), std::move(config)); });
}

}  // namespace coppice::families
