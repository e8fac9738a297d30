#include <algorithm>
#include <iostream>
#include <optional>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/data/tokenize.h"
#include "coppice/io/atomic_file.h"
#include "coppice/options/options.h"

namespace coppice::cli {
namespace {
namespace fs = std::filesystem;

constexpr std::string_view kSummary = "convert text to a token file, with a model's tokenizer or a new one";

struct TokenizeOptions {
  std::vector<fs::path> text;
  fs::path out;
  std::optional<fs::path> tokenizer, train_tokenizer;
  int64_t vocab_size = 2048;
  uint64_t seed = 0;
  std::string text_key = "text";
  bool split_at_blank_lines = false;
  bool json = false;
  Given given;
  static constexpr auto fields() {
    using O = TokenizeOptions;
    return std::tuple{
        operand("TEXT", &O::text,
                "files of plain text or JSON lines (.jsonl, .json), may be gzipped; or directories of .txt and .jsonl "
                "files"),
        field("out", &O::out, "token file to write: OUT.bin, OUT.idx and OUT.json; must not exist"),
        field("tokenizer", &O::tokenizer, "model or tokenizer directory with the tokenizer to use"),
        field("train-tokenizer", &O::train_tokenizer,
              "train a sentencepiece tokenizer on the text, write it to this new directory and use it"),
        field("vocab-size", &O::vocab_size, "vocabulary size of the tokenizer to train"),
        field("seed", &O::seed, "random seed of the sample of a long text that the tokenizer is trained on"),
        field("text-key", &O::text_key, "key that holds the text in each JSON line"),
        field("split-at-blank-lines", &O::split_at_blank_lines,
              "plain text: an empty line ends a document (default: each file is one document)"),
        field("json", &O::json, "print the result as one JSON object")};
  }
};

void check_used(const TokenizeOptions& o, std::span<const fs::path> files) {
  const auto is_lines = [](const fs::path& file) { return file.extension() == ".jsonl"; };
  refuse_without_effect(
      o.given, {{o.tokenizer.has_value(), "--tokenizer uses a finished tokenizer", {"vocab-size", "seed"}},
                {std::ranges::none_of(files, is_lines), "no TEXT is a file of JSON lines", {"text-key"}},
                {std::ranges::all_of(files, is_lines), "no TEXT is a plain text file", {"split-at-blank-lines"}}});
}

/// Returns the directory of the tokenizer to use; trains it first if --train-tokenizer is given.
fs::path prepare_tokenizer(const TokenizeOptions& o, std::span<const fs::path> files, const data::TextFormat& format) {
  if (o.tokenizer.has_value() == o.train_tokenizer.has_value()) {
    throw Error(ErrorCode::kUsage, "tokenize: give either --tokenizer DIR or --train-tokenizer DIR");
  }
  if (o.tokenizer) return *o.tokenizer;
  io::AtomicDirectory directory(*o.train_tokenizer);
  const data::TokenizerTraining settings{.vocab_size = o.vocab_size, .seed = o.seed};
  data::train_tokenizer(data::sample_text(files, format, settings.sample_bytes, o.seed), settings, directory.path());
  directory.commit();
  log_info(cat("trained a tokenizer with a vocabulary of ", o.vocab_size, ": ", *o.train_tokenizer));
  return *o.train_tokenizer;
}

int run(std::span<const std::string_view> args) {
  const auto o = parse<TokenizeOptions>("tokenize", kSummary, args);
  if (o.out.empty()) throw Error(ErrorCode::kUsage, "tokenize: --out is missing (name the token file to write)");
  data::check_token_file_absent(o.out);
  const auto files = data::list_text_files(o.text);
  check_used(o, files);
  const data::TextFormat format{.text_key = o.text_key, .split_at_blank_lines = o.split_at_blank_lines};
  const auto tokenizer = data::open_tokenizer(prepare_tokenizer(o, files, format));
  const auto card = data::tokenize_files(files, format, *tokenizer, o.out);
  const double bytes_per_token = static_cast<double>(card.text_bytes) / static_cast<double>(card.tokens);
  if (o.json) {
    Json out = Json::object();
    out["out"] = o.out.string();
    out["documents"] = card.documents;
    out["tokens"] = card.tokens;
    out["text_bytes"] = card.text_bytes;
    out["bytes_per_token"] = bytes_per_token;
    out["vocab_size"] = card.vocab_size;
    out["tokenizer_digest"] = card.tokenizer_digest;
    std::cout << out.dump() << "\n";
  } else {
    std::cout << cat(shown(o.out.string()), ": ", card.documents, " documents, ", card.tokens,
                     " tokens, vocabulary of ", card.vocab_size, ", ", fixed_text(bytes_per_token, 2),
                     " bytes per token\n");
  }
  return 0;
}

}  // namespace

extern const Command kTokenize;
const Command kTokenize{"tokenize", kSummary, run};

}  // namespace coppice::cli
