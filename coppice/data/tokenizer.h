#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::data {

/// Text to ids, as the model's transformers tokenizer does without special tokens added.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual int64_t vocab_size() const = 0;
  virtual int32_t eos_id() const = 0;
  /// Threads  any.
  virtual std::vector<std::vector<int32_t>> encode(std::span<const std::string_view> documents) const = 0;
  /// SHA-256 of the tokenizer's file.
  virtual std::string digest() const = 0;
};

/// The tokenizer of a model or tokenizer directory: tokenizer.model (sentencepiece, in process) where it is one of ours or its options agree with
/// transformers; else tokenizer.json through PyPI tokenizers in helper processes of $COPPICE_PYTHON or the project's virtual environment.
/// Throws   Error{kNotFound}, Error{kFormat}, Error{kIo} (no Python with `tokenizers`: says how to get one).
std::unique_ptr<Tokenizer> open_tokenizer(const std::filesystem::path& directory);

/// SHA-256 of the directory's tokenizer file, empty if it has none.
std::string tokenizer_digest(const std::filesystem::path& directory);

struct TokenizerTraining {
  int64_t vocab_size = 2048;
  uint64_t max_sentence_bytes = 4192;
  uint64_t seed = 0;
};
/// Trains a sentencepiece BPE model (byte fallback, identity normalisation, whitespace kept, no dummy prefix) and writes into `directory`
/// tokenizer.model, tokenizer.json, tokenizer_config.json and special_tokens_map.json, which transformers reads with the same ids.
void train_tokenizer(std::span<const std::string> documents, const TokenizerTraining& settings, const std::filesystem::path& directory);

}  // namespace coppice::data
