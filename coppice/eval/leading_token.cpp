// The token that a tokenizer puts before every text, from the template in its tokenizer.json.

#include "coppice/base/error.h"
#include "coppice/base/json_reader.h"
#include "coppice/base/text.h"
#include "coppice/eval/multiple_choice.h"
#include "coppice/io/model_directory.h"

namespace coppice::eval {
namespace {

namespace fs = std::filesystem;

constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";

// The template among the post-processors, if any.
const Json* find_template(const Json* processor) {
  if (processor == nullptr || !processor->is_object()) return nullptr;
  const Json* type = processor->find("type");
  if (type == nullptr || !type->is_string()) return nullptr;
  if (type->as_string() == "TemplateProcessing") return processor;
  if (type->as_string() != "Sequence") return nullptr;
  for (const Json& inner : processor->at("processors").items()) {
    if (const Json* found = find_template(&inner)) return found;
  }
  return nullptr;
}

bool says_leading(const io::ModelDirectory& files, bool fallback) {
  if (!files.has(kTokenizerConfig)) return fallback;
  const Json config = files.read_json(kTokenizerConfig);
  const Json* says = config.find("add_bos_token");
  return says != nullptr && says->kind() == Json::Kind::kBool ? says->as_bool() : fallback;
}

}  // namespace

std::optional<LeadingToken> leading_token(const fs::path& directory) {
  const io::ModelDirectory files(directory);
  const fs::path path = directory / kTokenizer;
  const JsonReader tokenizer(files.has(kTokenizer) ? files.read_json(kTokenizer) : Json::object(), path.string());
  const Json* const found = find_template(tokenizer.json().find("post_processor"));
  std::optional<LeadingToken> out;
  bool after_text = false;
  for (const JsonReader& part : found ? tokenizer.of(*found).at("single").items() : std::vector<JsonReader>()) {
    const auto special = part.find("SpecialToken");
    if (!special) {
      after_text = true;
      continue;
    }
    const std::string& text = special->at("id").as_string();
    const auto ids = tokenizer.of(*found).at("special_tokens").at(text).at("ids").items();
    if (after_text || out || ids.size() != 1) {
      throw Error(ErrorCode::kUnsupported, cat(path, ": adds '", text, "' around texts; wanted one token before them, ",
                                               "or none (likelihoods would differ from those of other tools)"));
    }
    out = LeadingToken{static_cast<int32_t>(ids.front().as_int()), text};
  }
  if (says_leading(files, out.has_value()) != out.has_value()) {
    throw Error(
        ErrorCode::kUnsupported,
        cat(directory, ": tokenizer_config.json has add_bos_token, but the template in tokenizer.json has ",
            out ? "another token" : "none", "; wanted them to agree (save the tokenizer again in transformers)"));
  }
  return out;
}

}  // namespace coppice::eval
