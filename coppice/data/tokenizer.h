#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::data {

/// Converts text to ids like the model's transformers tokenizer, without adding special tokens.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual int64_t vocab_size() const = 0;
  virtual int32_t eos_id() const = 0;
  /// Special tokens that are written in the text become their ids, as in transformers.
  ///
  /// Threads  any; uses all cores of the process.
  /// Throws   Error{kFormat} if a document is not UTF-8; Error{kIo} if a helper process ended.
  virtual std::vector<std::vector<int32_t>> encode(std::span<const std::string_view> documents) const = 0;
  /// SHA-256 of the tokenizer's file.
  virtual std::string digest() const = 0;
};

/// The tokenizer of a model or tokenizer directory: tokenizer.model (sentencepiece, in this process) if its options,
/// and any tokenizer.json beside it, agree with transformers; otherwise tokenizer.json with PyPI tokenizers in helper
/// processes of $COPPICE_PYTHON or the project's virtual environment.
///
/// Throws   Error{kNotFound}, Error{kFormat}; Error{kUnsupported}: a tokenizer.model without tokenizer.json for which
///          transformers would give other ids; Error{kIo} (no Python with `tokenizers`: says how to get one).
std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& directory);

/// SHA-256 of the directory's tokenizer file (tokenizer.json, else tokenizer.model), empty if it has none.
std::string tokenizer_digest(const std::filesystem::path& directory);

struct TokenizerTraining {
  int64_t vocab_size = 2048;
  uint64_t max_sentence_bytes = 4192;
  uint64_t seed = 0;
  uint64_t sample_bytes = uint64_t{16} << 20;  ///< of longer text, a random sample of this size is used
};
/// Trains a sentencepiece BPE model (byte fallback, identity normalisation, whitespace kept, no dummy prefix) and
/// writes into `directory`, made if needed, tokenizer.model, tokenizer.json, tokenizer_config.json and
/// special_tokens_map.json, which transformers reads with the same ids. <unk> is 0, <s> 1, </s> 2. Same documents and
/// settings, same bytes.
///
/// Throws   Error{kUsage}: a tokenizer is there already, or the vocabulary does not fit the text; Error{kFormat}: not
///          UTF-8.
void train_tokenizer(std::span<const std::string> documents, const TokenizerTraining& settings,
                     const std::filesystem::path& directory);

}  // namespace coppice::data
