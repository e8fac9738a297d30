#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace coppice::data {

/// The contents of DATA.json beside DATA.bin and DATA.idx; missing for files that other programs wrote.
struct TokenFileCard {
  std::string tokenizer_digest;
  int64_t vocab_size = 0;
  uint64_t documents = 0, tokens = 0, text_bytes = 0;
  std::vector<std::string> sources;
};

/// A Megatron indexed data set (`PREFIX.bin`, `PREFIX.idx`), memory-mapped.
///
/// Threads  any; copies share the mapping.
/// Source   Megatron-LM's MMapIndexedDataset: "MMIDIDX\0\0", version 1, dtype code, sequence and document counts,
///          lengths i32, pointers i64, documents i64.
class TokenFile {
 public:
  /// `path` with or without .bin/.idx. Throws Error{kNotFound, kIo}; Error{kFormat}: bad magic, version, dtype, counts
  /// that the .idx cannot hold, negative lengths, sequences out of order or past the .bin, a card that disagrees.
  static TokenFile open(const std::filesystem::path& path);

  uint64_t num_tokens() const;
  uint64_t num_documents() const;
  const std::optional<TokenFileCard>& card() const;
  const std::filesystem::path& path() const;  ///< prefix
  /// Tokens [begin, begin + out.size()) of all documents concatenated, widened to int64.
  ///
  /// Throws   Error{kIo} if the file was cut short meanwhile; Error{kFormat} naming file and position of an id outside
  ///          the card's vocabulary or, without a card, that of check_vocabulary.
  void read(uint64_t begin, std::span<int64_t> out) const;
  /// Token range [begin, end) of a document.
  std::pair<uint64_t, uint64_t> document(uint64_t index) const;
  /// For each token of [begin, begin + out.size()), where its document starts, counted from `begin`; 0 if it starts
  /// before.
  void document_starts(uint64_t begin, std::span<int64_t> out) const;
  /// SHA-256 of the .bin, cached beside the file while its size and modification time do not change.
  std::string digest() const;
  /// Checks that every id is below `vocab_size` and, with a card and a `tokenizer_digest`, that the tokenizers agree.
  /// Without a card every id is checked once (the result is cached beside the file), and a warning says that the
  /// tokenizer is unknown.
  ///
  /// Throws   Error{kFormat} naming file and what differs.
  void check_vocabulary(int64_t vocab_size, const std::string& tokenizer_digest) const;

 private:
  struct State;
  std::shared_ptr<const State> state_;
};

/// Opens the token files that a model will read; `vocab_size` is the model's.
///
/// Throws   as TokenFile::open and check_vocabulary, with the digest of the model's tokenizer.
std::vector<TokenFile> open_token_files(const std::filesystem::path& model, int64_t vocab_size,
                                        std::span<const std::filesystem::path> paths);

/// Throws   Error{kUsage} if a file of the set `prefix` exists.
void check_token_file_absent(const std::filesystem::path& prefix);

/// Writes such a data set; u16 tokens up to 65,500 ids, else i32. The files appear at `finish`, the .idx last, so that
/// no incomplete set can be opened; an unfinished writer removes its files.
///
/// Memory   four bytes per document and a buffer.
class TokenFileWriter {
 public:
  /// Throws   Error{kUsage} if a file of the set exists or `vocab_size` is below 1; Error{kIo}.
  TokenFileWriter(const std::filesystem::path& prefix, int64_t vocab_size);
  ~TokenFileWriter();
  TokenFileWriter(const TokenFileWriter&) = delete;
  TokenFileWriter& operator=(const TokenFileWriter&) = delete;
  /// Throws   Error{kFormat}: an id outside the vocabulary; Error{kIo}.
  void add_document(std::span<const int32_t> ids);
  uint64_t num_tokens() const;
  void finish(TokenFileCard card);  ///< counts and vocabulary size are filled in

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace coppice::data
