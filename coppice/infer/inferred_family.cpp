// An inference as a family file and as text.

#include <algorithm>

#include "coppice/base/text.h"
#include "coppice/infer/infer.h"
#include "coppice/infer/refuse_detail.h"

namespace coppice::infer {
namespace {

std::string toml_text(std::string_view text) { return Json(text).dump(); }

std::string list_of(const std::vector<std::string>& texts) {
  std::vector<std::string> items;
  for (const std::string& text : texts) items.push_back(toml_text(text));
  return cat("[", join(items), "]");
}

bool is_stacked(const InferredTensor& tensor) { return tensor.kind == Kind::kStacked; }

std::string top_k_key_of(const ExpertCount& count) {
  if (count.top_k_keys.empty())
    detail::refuse(detail::Rule::kCount, "no key of config.json is known to count the experts of a token (top-K)");
  return count.top_k_keys.front();
}

int rule_of(const InferredTensor& tensor) {
  const detail::Rule rule = tensor.kind == Kind::kRouter ? detail::Rule::kRouter
                            : tensor.kind == Kind::kRow  ? detail::Rule::kExplained
                                                         : detail::Rule::kExperts;
  return static_cast<int>(rule);
}

std::string_view meaning_of(const InferredTensor& tensor) {
  switch (tensor.kind) {
    case Kind::kRouter: return "one row for each expert, the only such tensor of its layer (rule 3)";
    case Kind::kRow: return "one value for each expert (rule 4); what it is added to or multiplies is unknown";
    case Kind::kNumbered: return "a tensor of each expert (rule 2)";
    case Kind::kStacked: return "all experts along the first dimension (rule 2)";
    case Kind::kOther: break;
  }
  return "";
}

}  // namespace

Json Inferred::to_json() const {
  Json json = Json::object();
  json["model_type"] = count.model_type;
  json["experts_keys"] = Json::array_of(count.keys);
  json["top_k_key"] = top_k_key_of(count);
  json["gate"] = "unknown";
  if (!count.num_groups_key.empty()) {
    json["groups"] = true;
    json["num_groups_key"] = count.num_groups_key;
    if (!count.top_groups_key.empty()) json["top_groups_key"] = count.top_groups_key;
  }
  if (has_mtp) json["mtp"] = true;
  json["decoder_trunk"] = false;
  Json& rules = json["tensors"] = Json::array();
  for (const InferredTensor& tensor : tensors) {
    Json rule = Json::object({{"name", tensor.name}, {"role", tensor.role}});
    if (is_stacked(tensor)) rule["stacked"] = true;
    if (tensor.first_layer >= 0) rule["first_layer"] = tensor.first_layer;
    rules.push_back(std::move(rule));
  }
  for (const std::string& top : tops) rules.push_back(Json::object({{"name", top}, {"role", "other"}}));
  return json;
}

std::string Inferred::to_toml() const {
  std::string out = cat(
      "# Inferred from config.json and the names and shapes of the tensors; read it before you rely on it.\n"
      "# With this file experts can be copied. To allow methods that change values, --top-k scale, --split and claims\n"
      "# that the function is kept, state what the model's code does: gate, renormalise, the roles of tensors\n"
      "# (docs/families.md lists the keys).\n\n",
      "model_type = ", toml_text(count.model_type), "\n", "experts_keys = ", list_of(count.keys), "  # ", count.experts,
      " experts (rule 1)\n", "top_k_key = ", toml_text(top_k_key_of(count)), "\n",
      "gate = \"unknown\"  # softmax_topk, topk_softmax or sigmoid_topk\n",
      "# renormalise = true  # the gates of a token are divided by their sum; false, or { key = \"...\", default = "
      "true }\n");
  if (!count.num_groups_key.empty()) {
    out += cat("groups = true\nnum_groups_key = ", toml_text(count.num_groups_key), "\n");
    if (!count.top_groups_key.empty()) out += cat("top_groups_key = ", toml_text(count.top_groups_key), "\n");
    out += "# group_score = \"best_two\"  # or \"best\": how a group is scored\n";
  }
  if (has_mtp) out += "mtp = true  # layers past num_hidden_layers\n";
  out += "decoder_trunk = false\ntensors = [\n";
  for (const InferredTensor& tensor : tensors) {
    out += cat("  # ", tensor.shape, ": ", meaning_of(tensor),
               tensor.guess.empty() ? std::string() : cat("; by its name perhaps ", tensor.guess), "\n",
               "  { name = ", toml_text(tensor.name), ", role = ", toml_text(tensor.role),
               is_stacked(tensor) ? ", stacked = true" : "",
               tensor.first_layer < 0 ? std::string() : cat(", first_layer = ", tensor.first_layer), " },\n");
  }
  out += "  # Everything else is copied unchanged.\n";
  for (const std::string& top : tops) out += cat("  { name = ", toml_text(top), ", role = \"other\" },\n");
  return out + "]\n";
}

Json Inferred::findings() const {
  Json json = Json::object();
  json["family"] = to_json();
  json["experts"] = count.experts;
  json["keys"] = Json::array_of(count.keys);
  json["part"] = count.text_key;
  Json& list = json["tensors"] = Json::array();
  for (const InferredTensor& t : tensors) {
    list.push_back(Json::object(
        {{"name", t.name}, {"shape", t.shape}, {"rule", rule_of(t)}, {"count", static_cast<int64_t>(t.count)}}));
  }
  json["carried"] = static_cast<int64_t>(carried);
  json["notes"] = Json::array_of(notes);
  return json;
}

std::string Inferred::to_text() const {
  std::string out =
      cat("family ", count.model_type, ", inferred\n", "rule 1: ", count.experts, " experts, by ", join(count.keys),
          count.text_key.empty() ? std::string() : cat(" in ", count.text_key), " of config.json\n");
  for (const InferredTensor& tensor : tensors) {
    const std::string_view what = tensor.kind == Kind::kRouter    ? "router"
                                  : tensor.kind == Kind::kRow     ? "a value for each expert"
                                  : tensor.kind == Kind::kStacked ? "stacked experts"
                                                                  : "experts";
    out += cat("rule ", rule_of(tensor), ": ", tensor.name, " ", tensor.shape, ": ", what, ", ", tensor.count,
               " tensors\n");
  }
  out += cat("rule 4: ", carried, " other tensors are copied unchanged; none has an unexplained dimension of ",
             count.experts, "\n");
  for (const std::string& note : notes) out += cat("note: ", note, "\n");
  out +=
      "unknown: gate function, renormalisation, the purpose of each expert's tensors and of values beside the router\n";
  return out;
}

}  // namespace coppice::infer
