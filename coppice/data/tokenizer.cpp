#include "coppice/data/tokenizer.h"

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/json_reader.h"
#include "coppice/base/text.h"
#include "coppice/data/tokenizer_detail.h"
#include "coppice/io/model_directory.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

using io::ModelDirectory;

JsonReader read_if_there(const ModelDirectory& files, const char* name) {
  return {files.has(name) ? files.read_json(name) : Json::object(), (files.path() / name).string()};
}

/// The end-of-text token from the configuration files of the directory.
struct EosToken {
  std::string content;
  int64_t id = -1;
};

EosToken find_eos(const ModelDirectory& files) {
  EosToken out;
  for (const auto* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const JsonReader config = read_if_there(files, name);
    const Json* token = config.json().find("eos_token");
    if (token != nullptr && token->is_object()) token = token->find("content");
    if (token != nullptr && token->is_string()) {
      out.content = token->as_string();
      return out;
    }
  }
  for (const auto* name : {"generation_config.json", "config.json"}) {
    const JsonReader config = read_if_there(files, name);
    const Json* id = config.json().find("eos_token_id");
    if (id != nullptr && id->is_array() && !id->items().empty()) id = &id->items().front();
    if (id != nullptr && id->is_number()) {
      out.id = config.of(*id).as_int();
      return out;
    }
  }
  return out;
}

bool is_special(const SpmModel& model, std::string_view text) {
  return std::ranges::any_of(model.pieces, [&](const auto& p) {
    return p.text == text && (p.kind == SpmModel::Kind::kControl || p.kind == SpmModel::Kind::kUnknown);
  });
}

/// Whether the files beside tokenizer.model agree with it.
bool companions_agree(const ModelDirectory& files, const SpmModel& model) {
  const JsonReader config = read_if_there(files, "tokenizer_config.json");
  if (const auto added = config.find("added_tokens_decoder"); added && added->json().is_object()) {
    for (const auto& [id, token] : added->members()) {
      if (!is_special(model, token.at("content").as_string())) return false;
    }
  }
  if (!files.has("tokenizer.json")) {
    const Json* prefix = config.json().find("add_prefix_space");
    return prefix != nullptr && prefix->kind() == Json::Kind::kBool && !prefix->as_bool();
  }
  const Json theirs = files.read_json("tokenizer.json"), ours = spm_to_tokenizer_json(model);
  for (const auto* key : {"added_tokens", "normalizer", "pre_tokenizer"}) {
    const Json* value = theirs.find(key);
    if (value == nullptr || *value != ours.at(key)) return false;
  }
  const Json* their_model = theirs.find("model");
  for (const auto* key : {"type", "byte_fallback", "ignore_merges", "vocab", "merges"}) {
    const Json* value = their_model == nullptr ? nullptr : their_model->find(key);
    if (value == nullptr || *value != ours.at("model").at(key)) return false;
  }
  return true;
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const fs::path& directory) {
  const ModelDirectory files(directory);
  const bool has_hf = files.has("tokenizer.json"), has_spm = files.has("tokenizer.model");
  if (!has_hf && !has_spm) {
    throw Error(ErrorCode::kNotFound,
                cat(directory,
                    ": has neither tokenizer.json nor tokenizer.model (give a model directory, or train a tokenizer)"));
  }
  const EosToken eos = find_eos(files);
  if (has_spm) {
    const fs::path spm = directory / "tokenizer.model";
    const std::string bytes = files.read("tokenizer.model");
    const SpmModel model = SpmModel::parse(bytes, spm.string());
    std::string reason = spm_disagreement(model);
    if (reason.empty() && companions_agree(files, model)) {
      return detail::open_spm_tokenizer(directory, bytes, model, eos.content);
    }
    if (!has_hf) {
      if (reason.empty()) reason = "tokenizer_config.json does not say \"add_prefix_space\": false";
      throw Error(ErrorCode::kUnsupported,
                  cat(spm, ": transformers and sentencepiece would give different ids, because ", reason,
                      " (write a tokenizer.json beside it with transformers' "
                      "AutoTokenizer.from_pretrained(...).save_pretrained(...))"));
    }
  }
  return detail::open_hf_tokenizer(files, eos.content, eos.id);
}

std::string tokenizer_digest(const fs::path& directory) {
  if (!fs::is_directory(directory)) return {};
  const ModelDirectory files(directory);
  for (const auto* name : {"tokenizer.json", "tokenizer.model"}) {
    if (files.has(name)) return files.sha256(name);
  }
  return {};
}

}  // namespace coppice::data
