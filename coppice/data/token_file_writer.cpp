#include <array>
#include <limits>

#include "coppice/base/check.h"
#include "coppice/base/json.h"
#include "coppice/data/token_file.h"
#include "coppice/data/token_index_detail.h"
#include "coppice/io/atomic_file.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

fs::path with_suffix(const fs::path& prefix, std::string_view suffix) { return prefix.string() + std::string(suffix); }

template <class T>
void append(io::PendingFile& file, const T& value) {
  file.append(std::as_bytes(std::span(&value, 1)));
}

constexpr std::array<std::string_view, 3> kSuffixes{".bin", ".json", ".idx"};

std::string card_text(const TokenFileCard& card) {
  Json out = Json::object();
  out["coppice_tokens"] = 1;
  out["tokenizer_digest"] = card.tokenizer_digest;
  out["vocab_size"] = card.vocab_size;
  out["documents"] = card.documents;
  out["tokens"] = card.tokens;
  out["text_bytes"] = card.text_bytes;
  out["sources"] = Json::array_of(card.sources);
  return out.dump(2) + "\n";
}

}  // namespace

void check_token_file_absent(const fs::path& prefix) {
  if (prefix.empty()) throw Error(ErrorCode::kUsage, "token file: the name is empty; wanted a prefix such as DATA");
  for (const auto suffix : kSuffixes) {
    const fs::path file = with_suffix(prefix, suffix);
    if (fs::exists(fs::symlink_status(file)))
      throw Error(ErrorCode::kUsage, cat(file, ": exists already (choose another name, or remove it)"));
  }
}

struct TokenFileWriter::State {
  State(const fs::path& path, int64_t vocabulary)
      : prefix(fs::absolute(path)),
        vocab_size(vocabulary),
        narrow(vocabulary <= detail::kMaxVocabU16),
        bin(with_suffix(prefix, ".bin")) {}

  fs::path prefix;
  int64_t vocab_size;
  bool narrow;
  io::PendingFile bin;
  std::vector<int32_t> lengths;
  uint64_t tokens = 0;
};

TokenFileWriter::TokenFileWriter(const fs::path& prefix, int64_t vocab_size) {
  if (vocab_size < 1 || vocab_size > std::numeric_limits<int32_t>::max()) {
    throw Error(ErrorCode::kUsage, cat(prefix, ": a vocabulary of ", vocab_size, " ids; wanted 1 to 2147483647"));
  }
  check_token_file_absent(prefix);
  state_ = std::make_unique<State>(prefix, vocab_size);
}

TokenFileWriter::~TokenFileWriter() = default;

uint64_t TokenFileWriter::num_tokens() const { return state_->tokens; }

void TokenFileWriter::add_document(std::span<const int32_t> ids) {
  auto& s = *state_;
  if (ids.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw Error(ErrorCode::kFormat,
                cat(s.prefix, ": document ", s.lengths.size(), " has ", ids.size(),
                    " tokens; wanted at most 2147483647, the limit of the format (split the document)"));
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= s.vocab_size) {
      throw Error(ErrorCode::kFormat,
                  cat(s.prefix, ": document ", s.lengths.size(), " has id ", id, "; wanted 0 to ", s.vocab_size - 1));
    }
  }
  if (s.narrow) {
    for (const int32_t id : ids) append(s.bin, static_cast<uint16_t>(id));
  } else {
    s.bin.append(std::as_bytes(ids));
  }
  s.lengths.push_back(static_cast<int32_t>(ids.size()));
  s.tokens += ids.size();
}

void TokenFileWriter::finish(TokenFileCard card) {
  auto& s = *state_;
  card.vocab_size = s.vocab_size;
  card.documents = s.lengths.size();
  card.tokens = s.tokens;

  io::PendingFile idx(with_suffix(s.prefix, ".idx")), json(with_suffix(s.prefix, ".json"));
  const uint64_t documents = s.lengths.size();
  idx.append(std::as_bytes(std::span(detail::kIndexMagic)));
  append(idx, detail::kIndexVersion);
  append(idx, static_cast<uint8_t>(s.narrow ? 8 : 4));
  append(idx, documents);
  append(idx, documents + 1);
  idx.append(std::as_bytes(std::span(s.lengths)));
  uint64_t begin = 0;
  for (const int32_t length : s.lengths) {
    append(idx, begin);
    begin += static_cast<uint64_t>(length) * (s.narrow ? 2 : 4);
  }
  for (uint64_t i = 0; i <= documents; ++i) append(idx, i);
  const std::string text = card_text(card);
  json.append(std::as_bytes(std::span(text)));

  s.bin.settle();
  json.settle();
  idx.settle();
  check_token_file_absent(s.prefix);
  // A set without its .idx cannot be opened, so the .idx is renamed last.
  s.bin.rename();
  json.rename();
  idx.rename();
}

}  // namespace coppice::data
