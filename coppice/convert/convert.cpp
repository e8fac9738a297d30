#include "coppice/convert/convert.h"

#include <algorithm>
#include <map>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/convert/converted_tensors.h"
#include "coppice/convert/families.h"
#include "coppice/convert/lineage.h"
#include "coppice/plan/lineage.h"

namespace coppice::convert {
namespace {

namespace fs = std::filesystem;
using families::Model;
using families::TensorSlot;

constexpr size_t kLossesShown = 8;

void refuse_losses(const Mapping& mapping, std::string_view from, bool lossy) {
  if (lossy || mapping.losses.empty()) return;
  throw Error(ErrorCode::kUnsupported,
              cat("a ", from, " model cannot be converted to ", mapping.config.family->model_type,
                  " completely: ", join_some(mapping.losses, kLossesShown, "; "),
                  " (choose another family, or pass --lossy to leave these out)"));
}

void refuse_quantised(const Model& model) {
  if (!model.config.is_quantised()) return;
  throw Error(ErrorCode::kUnsupported,
              cat(model.checkpoint.directory(), ": the weights are quantised with ", model.config.quantisation,
                  " ('quantization_config'), but a conversion changes values (use a bf16 checkpoint",
                  model.config.is_moe() ? "; `coppice expand --dequantize` writes one)" : ")"));
}

/// Keys of config.json that change what a model computes and in which parents could differ.
constexpr std::string_view kFunctionKeys[] = {"hidden_act",          "rms_norm_eps",        "rope_theta",
                                              "rope_scaling",        "rope_parameters",     "tie_word_embeddings",
                                              "sliding_window",      "use_sliding_window",  "layer_types",
                                              "num_attention_heads", "num_key_value_heads", "head_dim"};

/// The files of a tokenizer.
constexpr std::string_view kTokenizerFiles[] = {"tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"};

void check_alike(const Model& first, const Model& other) {
  const fs::path& directory = other.checkpoint.directory();
  const auto type = [](const Model& m) { return m.config.family->model_type; };
  if (type(first) != type(other)) {
    throw Error(ErrorCode::kFormat, cat(directory, ": a ", type(other), " model, but the first is ", type(first),
                                        "; wanted models of one family"));
  }
  for (const std::string_view key : kFunctionKeys) {
    const Json *a = first.config.json.find(key), *b = other.config.json.find(key);
    if (a == b || (a != nullptr && b != nullptr && *a == *b)) continue;
    throw Error(ErrorCode::kFormat, cat(directory, ": '", key, "' is ", b == nullptr ? "absent" : b->dump(), ", but ",
                                        a == nullptr ? "absent" : a->dump(), " in ", first.checkpoint.directory(),
                                        "; wanted equal values"));
  }
  std::vector<std::string> differing;
  for (const TensorSlot& slot : first.slots) {
    if (!other.checkpoint.contains(slot.name)) {
      differing.push_back(cat("'", slot.name, "' is missing"));
      continue;
    }
    const io::TensorInfo &a = *first.checkpoint.at(slot.name).info, &b = *other.checkpoint.at(slot.name).info;
    if (a.shape != b.shape || a.dtype != b.dtype) {
      differing.push_back(cat("'", slot.name, "' is ", io::dtype_name(b.dtype), " ", shape_text(b.shape), " and was ",
                              io::dtype_name(a.dtype), " ", shape_text(a.shape)));
    }
  }
  if (differing.empty()) return;
  throw Error(ErrorCode::kShape,
              cat(directory, ": its tensors differ from the first model's: ", join_some(differing, kLossesShown)));
}

void compare_tokenizers(const Model& first, const Model& other, std::vector<std::string>& losses) {
  for (const std::string_view name : kTokenizerFiles) {
    const io::ModelDirectory &a = first.checkpoint.files(), &b = other.checkpoint.files();
    if (!a.has(name) || !b.has(name) || a.sha256(name) == b.sha256(name)) continue;
    losses.push_back(cat("'", name, "' of ", other.checkpoint.directory(),
                         ": differs from the first model's, so the tokenizers may differ"));
  }
}

Mapping map_parents(std::span<const Model> parents, const ConversionPlan& plan) {
  const Model& first = parents.front();
  for (const Model& model : parents) refuse_quantised(model);
  Mapping mapping = map_to_moe(first.config, first.slots, plan);
  for (const Model& other : parents.subspan(1)) {
    check_alike(first, other);
    compare_tokenizers(first, other, mapping.losses);
  }
  refuse_losses(mapping, plan.from, plan.lossy);
  return mapping;
}

Mapping map_back(const Model& moe, std::string_view to, bool lossy) {
  refuse_quantised(moe);
  Mapping mapping = map_to_dense(moe.config, moe.slots, to);
  refuse_losses(mapping, moe.config.family->model_type, lossy);
  return mapping;
}

}  // namespace

Conversion::Conversion(std::span<const Model> parents, const ConversionPlan& plan, const methods::RouterRows* rows)
    : plan_(plan), mapping_(map_parents(parents, plan)) {
  for (const Model& model : parents) sources_.push_back(&model);
  for (const methods::LayerPlan& layer : plan.layers) {
    if (rows != nullptr) (void)rows->of(layer.layer, plan.experts, plan.experts_a_row(), mapping_.config.model_dim);
  }
  tensors_ = converted_tensors(parents, *plan_, mapping_, rows);
}

Conversion::Conversion(const Model& moe, std::string_view to, bool lossy)
    : sources_{&moe}, mapping_(map_back(moe, to, lossy)), tensors_(averaged_tensors(moe, mapping_)) {}

std::vector<std::string> Conversion::sources() const {
  std::vector<std::string> texts;
  for (const MappedTensor& tensor : mapping_.tensors)
    texts.push_back(source_text(tensor, plan_ ? *plan_ : ConversionPlan{}));
  return texts;
}

namespace {

/// SHA-256 of every router whose rows were read from a file and cannot be recomputed.
std::map<std::string, std::string> digests_of_given_routers(const Mapping& mapping, const ConversionPlan& plan,
                                                            std::span<const output::OutputTensor> tensors) {
  std::map<std::string, std::string> digests;
  if (methods::new_router(plan.router.name).row != nullptr) return digests;
  for (size_t i = 0; i < tensors.size(); ++i) {
    if (mapping.tensors[i].origin != Origin::kRouter) continue;
    Sha256 digest;
    std::vector<std::byte> bytes;
    for (const output::OutputPiece& piece : tensors[i].pieces) {
      bytes.resize(piece.bytes);
      piece.fill(0, bytes);
      digest.add(bytes);
    }
    digests[tensors[i].info.name] = digest.hex();
  }
  return digests;
}

}  // namespace

output::WrittenModel convert(Conversion& conversion, const output::OutputSettings& settings) {
  const Model& first = *conversion.sources_.front();
  std::vector<const io::Checkpoint*> sources;
  std::vector<std::string> digests;
  for (const Model* model : conversion.sources_) {
    sources.push_back(&model->checkpoint);
    digests.push_back(model->digest());
  }
  const auto plan = conversion.plan_ ? std::optional(canonical(*conversion.plan_)) : std::nullopt;
  ConversionRecord record{.plan = plan ? &*plan : nullptr,
                          .from = std::string(first.config.family->model_type),
                          .to = std::string(conversion.mapping_.config.family->model_type),
                          .experts_before = first.config.num_experts,
                          .source_digests = std::move(digests),
                          .losses = conversion.mapping_.losses,
                          .given_routers = {},
                          .settings = settings.record};
  if (conversion.plan_)
    record.given_routers = digests_of_given_routers(conversion.mapping_, *conversion.plan_, conversion.tensors_);
  const output::NewModel model{.plan = plan ? plan->to_json().dump() : cat("dense-average ", record.to),
                               .config = conversion.mapping_.config.json,
                               .lineage = extend_lineage(plan::read_lineage(first.checkpoint.directory()), record),
                               .weights = std::move(conversion.tensors_)};
  return output::write_model(sources, model, settings, "convert");
}

std::string_view dense_counterpart(const Model& moe) {
  constexpr std::string_view kPlain = "llama", kNormed = "qwen3";
  const std::string_view to = family_to_average(moe.config.family->model_type, {}).to;
  const bool normed =
      std::ranges::any_of(moe.slots, [](const TensorSlot& slot) { return slot.role() == families::Role::kQueryNorm; });
  return to == kNormed && !normed ? kPlain : to;  // in glm4_moe these norms are optional
}

}  // namespace coppice::convert
