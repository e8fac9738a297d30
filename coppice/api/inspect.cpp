#include "coppice/api/inspect.h"

#include <map>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/families/match.h"
#include "coppice/families/quantization.h"
#include "coppice/families/routing_class.h"
#include "coppice/infer/infer.h"
#include "coppice/io/atomic_file.h"
#include "coppice/models/expert_norms.h"
#include "coppice/plan/lineage.h"
#include "coppice/report/html.h"

namespace coppice::api {
namespace {

namespace fs = std::filesystem;
using models::ExpertNorms;

/// Everything that `inspect` prints.
struct Findings {
  families::ParameterCount parameters;
  std::map<families::Component, uint64_t> component_bytes;
  std::map<std::string, uint64_t> dtype_bytes;
  std::string routing, digest;
  bool tokenizer = false;
  std::optional<Json> lineage;
  std::map<int64_t, std::vector<ExpertNorms>> norms;
};

std::string routing_text(const families::ModelConfig& config) {
  const families::Routing& r = config.routing;
  std::string text;
  switch (r.gate) {
    case families::GateFunction::kSoftmaxTopK:
      text = cat("softmax over all experts, then the top ", config.top_k_text());
      break;
    case families::GateFunction::kTopKSoftmax:
      text = cat("the top ", config.top_k_text(), " logits, then softmax over them");
      break;
    case families::GateFunction::kSigmoidTopK: text = cat("sigmoid, then the top ", config.top_k_text()); break;
    case families::GateFunction::kSqrtSoftplusTopK:
      text = cat("square root of softplus, then the top ", config.top_k_text());
      break;
    case families::GateFunction::kUnknown:
      return cat("the top ", config.top_k_text(), "; the family file does not say by which gates (`",
                 families::missing_routing_keys(r), "`)");
  }
  if (r.has_selection_bias) text += r.bias_on_logits ? " by logit plus selection bias" : " by gate plus selection bias";
  if (r.has_expert_table) text += " (in some layers by a table of tokens)";
  if (r.num_groups > 1) text += cat(", of the best ", r.top_groups, " of ", r.num_groups, " groups");
  if (!r.renormalise_known) {
    text += "; the family file does not say whether gates are renormalised (`renormalise`)";
  } else if (r.gate != families::GateFunction::kTopKSoftmax) {
    text += !r.renormalise       ? ", gates not renormalised"
            : r.gate_norm == 1.0 ? ", gates renormalised"
                                 : cat(", gates divided by their ", r.gate_norm, "-norm");
  }
  if (r.kind == families::RouterKind::kSharedChoices) text += " with those of shared experts";
  if (r.routed_scaling != 1.0) text += cat(", times ", r.routed_scaling);
  return text;
}

bool has_tokenizer(const fs::path& model) {
  for (const char* name : {"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"}) {
    if (fs::exists(model / name)) return true;
  }
  return false;
}

Findings look(const families::Model& model, const InspectOptions& o) {
  Findings found;
  found.parameters = families::count_parameters(model);
  for (const auto& slot : model.slots) {
    const auto& info = *model.checkpoint.at(slot.name).info;
    found.component_bytes[families::component_of(slot.role())] += info.bytes;
    found.dtype_bytes[std::string(io::dtype_name(info.dtype))] += info.bytes;
  }
  if (model.config.is_moe()) found.routing = routing_text(model.config);
  found.digest = model.digest();
  found.tokenizer = has_tokenizer(o.model);
  found.lineage = plan::read_lineage(o.model);
  if (o.experts) found.norms = models::expert_norms(model, default_threads());
  return found;
}

Json parameters_json(const families::ParameterCount& count) {
  Json json = Json::object();
  json["total"] = count.total;
  json["active"] = count.active;
  for (const auto component : families::kComponents)
    json[families::component_name(component)] = count.component(component);
  return json;
}

Json norms_json(const std::map<int64_t, std::vector<ExpertNorms>>& norms) {
  Json json = Json::object();
  for (const auto& [layer, experts] : norms) {
    Json& list = json[std::to_string(layer)] = Json::array();
    for (const ExpertNorms& n : experts) {
      list.push_back(Json::object({{"gate", n.gate}, {"up", n.up}, {"down", n.down}, {"router", n.router}}));
    }
  }
  return json;
}

Json to_json(const families::Model& model, const Findings& found, const InspectOptions& o) {
  const auto& c = model.config;
  Json json = Json::object();
  json["model"] = o.model.string();
  json["model_type"] = c.family->model_type;
  json["layers"] = c.num_layers;
  json["moe_layers"] = c.num_moe_layers();
  json["experts"] = c.num_experts;
  json["top_k"] = c.top_k;
  if (!c.top_k_by_layer.empty()) json["top_k_by_layer"] = Json::array_of(c.top_k_by_layer);
  json["routing"] = c.is_moe() ? Json(found.routing) : Json();
  json["model_dim"] = c.model_dim;
  json["heads"] = c.num_heads;
  json["kv_heads"] = c.num_kv_heads;
  json["head_dim"] = c.head_dim;
  json["vocab_size"] = c.vocab_size;
  json["dense_width"] = c.dense_width;
  json["expert_width"] = c.expert_width;
  json["shared_width"] = c.shared_width;
  json["max_positions"] = c.max_positions;
  json["tied_embeddings"] = c.tied;
  json["parameters"] = parameters_json(found.parameters);
  Json& bytes = json["bytes"] = Json::object();
  bytes["total"] = model.checkpoint.total_bytes();
  for (const auto& [component, count] : found.component_bytes) bytes[families::component_name(component)] = count;
  Json& dtypes = json["dtypes"] = Json::object();
  for (const auto& [dtype, count] : found.dtype_bytes) dtypes[dtype] = count;
  json["files"] = model.checkpoint.shards().size();
  json["tensors"] = model.slots.size();
  json["digest"] = found.digest;
  json["tokenizer"] = found.tokenizer;
  json["quantisation"] = c.is_quantised() ? Json(c.quantisation) : Json();
  json["unsupported_in_training"] = Json::array_of(c.unsupported_in_nn);
  json["lineage"] = found.lineage ? *found.lineage : Json();
  if (o.experts) json["expert_norms"] = norms_json(found.norms);
  return json;
}

std::string layers_text(const families::ModelConfig& c) {
  if (!c.is_moe()) return cat(c.num_layers, ", all dense");
  return cat(c.num_layers, ", ", c.num_moe_layers() == c.num_layers ? "all" : cat(c.num_moe_layers()), " with experts");
}

std::string experts_text(const families::ModelConfig& c) {
  return cat(c.num_experts, " per layer, ", c.top_k_text(), " per token, width ", c.expert_width,
             c.shared_width > 0 ? cat(", and a shared expert of width ", c.shared_width) : std::string());
}

std::string lineage_text(const Json& lineage) {
  std::string text = "\nlineage, oldest first:\n";
  for (const Json& step : lineage.at("steps").items()) {
    const auto& experts = step.at("experts").items();
    text += cat("  ",
                shown(cat(step.at("command").as_string(), ": ", experts[0].dump(), " -> ", experts[1].dump(),
                          " experts, ", step.at("methods").dump(), ", order ", step.at("order").as_string(), ", seed ",
                          step.at("seed").dump(), ", from ", step.at("source_digest").as_string().substr(0, 12),
                          ", coppice ", step.at("version").as_string())),
                "\n");
  }
  return text;
}

std::string to_text(const families::Model& model, const Findings& found, const InspectOptions& o) {
  const auto& c = model.config;
  std::string out;
  const auto line = [&out](std::string_view name, const std::string& text) {
    constexpr size_t kWidth = 14;
    out += cat(name, std::string(kWidth - name.size(), ' '), shown(text), "\n");
  };
  const auto count = [](int64_t n) { return cat(count_text(static_cast<double>(n)), " (", n, ")"); };
  line("family", std::string(c.family->model_type));
  line("layers", layers_text(c));
  if (c.is_moe()) {
    line("experts", experts_text(c));
    line("routing", found.routing);
  }
  // 0: the configuration of a family that coppice only expands does not say it in a key that coppice reads
  const auto size = [](int64_t n) { return n > 0 ? std::to_string(n) : std::string("unknown"); };
  line("dimensions",
       cat("model ", size(c.model_dim), ", heads ", size(c.num_heads), " (", size(c.num_kv_heads), " key-value) of ",
           size(c.head_dim), ", vocabulary ", size(c.vocab_size), c.tied ? ", embeddings tied" : ""));
  line("context", c.max_positions > 0 ? cat(c.max_positions, " tokens") : std::string("unknown"));
  line("parameters", count(found.parameters.total));
  line("active", cat(count(found.parameters.active), " per token"));
  line("weights", cat(bytes_text(model.checkpoint.total_bytes()), " in ", model.slots.size(), " tensors, ",
                      model.checkpoint.shards().size(), model.checkpoint.shards().size() == 1 ? " file" : " files"));
  std::string dtypes;
  for (const auto& [dtype, bytes] : found.dtype_bytes) {
    dtypes += cat(dtypes.empty() ? "" : ", ", dtype, " (", bytes_text(bytes), ")");
  }
  line("dtype", dtypes);
  if (c.is_quantised()) line("quantised", c.quantisation);
  const auto is_copy = [](const families::TensorSlot& slot) { return slot.role() == families::Role::kTiedCopy; };
  for (const families::TensorSlot& slot : model.slots) {
    if (is_copy(slot)) line("stored twice", cat("'", slot.name, "' repeats the embeddings, to which it is tied"));
  }
  line("tokenizer", found.tokenizer ? "present" : "none");
  line("digest", found.digest);
  if (!c.unsupported_in_nn.empty()) line("not trainable", cat(join(c.unsupported_in_nn), "; expansion is supported"));

  report::Table parts{{"component", "parameters", "bytes"}, {}};
  for (const auto component : families::kComponents) {
    if (const auto bytes = found.component_bytes.find(component); bytes != found.component_bytes.end()) {
      parts.rows.push_back({std::string(families::component_name(component)),
                            cat(found.parameters.component(component)), cat(bytes->second)});
    }
  }
  out += cat("\n", report::text_table(parts));
  if (found.lineage) out += lineage_text(*found.lineage);
  if (!o.experts) return out;
  report::Table norms{{"layer", "expert", "gate", "up", "down", "router"}, {}};
  for (const auto& [layer, experts] : found.norms) {
    for (size_t e = 0; e < experts.size(); ++e) {
      const ExpertNorms& n = experts[e];
      norms.rows.push_back(
          {cat(layer), cat(e), number_text(n.gate), number_text(n.up), number_text(n.down), number_text(n.router)});
    }
  }
  return out + cat("\n", report::text_table(norms));
}

/// What --infer prints. The family is used once to place every tensor, so that what is printed can be used.
Outcome inferred_outcome(const InspectOptions& o) {
  if (o.family_file) refuse_option("family-file", "--infer uses no family file");
  if (o.experts) refuse_option("experts", "--infer reads no values");
  if (o.write_family && fs::exists(fs::symlink_status(*o.write_family)))
    throw Error(ErrorCode::kUsage, cat(*o.write_family, ": exists (choose another name, or remove it)"));
  const infer::Inferred inferred = infer::infer_family(io::Checkpoint::open(o.model)).inferred;
  Outcome out{inferred.findings(), inferred.to_text()};
  if (!o.write_family) return out;
  io::write_file_atomically(*o.write_family, inferred.to_toml());
  out.text += cat("wrote ", shown(o.write_family->string()), "\n");
  return out;
}

}  // namespace

Outcome inspect(const InspectOptions& o) {
  if (o.infer) return inferred_outcome(o);
  if (o.write_family) refuse_option("write-family", "there is no --infer");
  const infer::GivenFamily given(o.family_file, o.model);
  const families::Model model = families::open_model(o.model, given.family());
  const Findings found = families::naming_quantisation(model.config, [&] { return look(model, o); });
  if (const auto warning = plan::routing_warning(o.model, found.lineage)) log_warning(*warning);
  return {to_json(model, found, o), to_text(model, found, o)};
}

}  // namespace coppice::api
