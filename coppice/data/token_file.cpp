#include "coppice/data/token_file.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <ranges>

#include "coppice/base/check.h"
#include "coppice/base/file.h"
#include "coppice/base/json_reader.h"
#include "coppice/base/log.h"
#include "coppice/base/sha256.h"
#include "coppice/base/thread_pool.h"
#include "coppice/data/token_index_detail.h"
#include "coppice/data/token_memory_detail.h"
#include "coppice/data/tokenizer.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kAnyId = std::numeric_limits<int64_t>::max();

fs::path with_suffix(const fs::path& prefix, std::string_view suffix) {
  fs::path out = prefix;
  out += suffix;
  return out;
}

fs::path prefix_of(const fs::path& path) {
  if (path.extension() == ".bin" || path.extension() == ".idx") return fs::path(path).replace_extension();
  return path;
}

/// The card beside `prefix`; none if PREFIX.json does not exist or is not a card.
std::optional<TokenFileCard> read_card(const fs::path& prefix, const detail::TokenIndex& index) {
  const auto path = with_suffix(prefix, ".json");
  if (!fs::exists(path)) return std::nullopt;
  const JsonReader json = JsonReader::read(path);
  if (!json.find("coppice_tokens")) return std::nullopt;
  const auto count = [&](std::string_view key) {
    return static_cast<uint64_t>(json.at(key).integer(0, std::numeric_limits<int64_t>::max()));
  };
  if (const auto version = json.at("coppice_tokens").as_int(); version != 1) {
    json.fail(cat("version ", version, "; wanted 1 (written by a newer coppice)"));
  }
  TokenFileCard card;
  card.tokenizer_digest = json.at("tokenizer_digest").as_string();
  card.vocab_size = static_cast<int64_t>(count("vocab_size"));
  card.documents = count("documents");
  card.tokens = count("tokens");
  card.text_bytes = count("text_bytes");
  for (const auto& source : json.at("sources").items()) card.sources.push_back(source.as_string());
  if (card.tokens != index.tokens || card.documents != index.documents) {
    throw Error(ErrorCode::kFormat,
                cat(path, ": has ", card.tokens, " tokens in ", card.documents, " documents, but the .idx has ",
                    index.tokens, " in ", index.documents, " (the files do not belong together)"));
  }
  return card;
}

template <class T>
void widen(const std::byte* from, std::span<int64_t> out) {
  for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<int64_t>(detail::load<T>(from + i * sizeof(T)));
}

struct IdRange {
  int64_t least = std::numeric_limits<int64_t>::max();
  int64_t greatest = std::numeric_limits<int64_t>::min();
};

IdRange scan_ids(const TokenFile& file) {
  constexpr uint64_t kChunk = 1 << 20;
  IdRange range;
  std::mutex mutex;
  parallel_for((file.num_tokens() + kChunk - 1) / kChunk, default_threads(), [&](size_t chunk) {
    const uint64_t begin = chunk * kChunk;
    std::vector<int64_t> ids(std::min(kChunk, file.num_tokens() - begin));
    file.read(begin, ids);
    const auto [least, greatest] = std::ranges::minmax(ids);
    const std::scoped_lock lock(mutex);
    range.least = std::min(range.least, least);
    range.greatest = std::max(range.greatest, greatest);
  });
  return range;
}

IdRange id_range(const TokenFile& file) {
  Json known = detail::known_of(file.path());
  const Json *const least = known.find(detail::kLeastId), *const greatest = known.find(detail::kGreatestId);
  if (least != nullptr && greatest != nullptr) return {least->as_int(), greatest->as_int()};
  const IdRange range = scan_ids(file);
  known[detail::kLeastId] = range.least;
  known[detail::kGreatestId] = range.greatest;
  detail::remember(file.path(), known);
  return range;
}

}  // namespace

struct TokenFile::State {
  explicit State(const fs::path& p)
      : prefix(p),
        idx(open_to_read(with_suffix(p, ".idx")), with_suffix(p, ".idx")),
        bin(open_to_read(with_suffix(p, ".bin")), with_suffix(p, ".bin")),
        index(detail::parse_token_index(idx.bytes(), bin.bytes().size(), with_suffix(p, ".idx").string())),
        card(read_card(p, index)),
        vocab_size(card ? card->vocab_size : kAnyId) {}

  fs::path prefix;
  MappedFile idx, bin;
  detail::TokenIndex index;
  std::optional<TokenFileCard> card;
  mutable std::atomic<int64_t> vocab_size;  // limit of ids that read() checks
};

TokenFile TokenFile::open(const fs::path& path) {
  TokenFile out;
  out.state_ = std::make_shared<const State>(prefix_of(path));
  return out;
}

uint64_t TokenFile::num_tokens() const { return state_->index.tokens; }
uint64_t TokenFile::num_documents() const { return state_->index.documents; }
const std::optional<TokenFileCard>& TokenFile::card() const { return state_->card; }
const fs::path& TokenFile::path() const { return state_->prefix; }

void TokenFile::read(uint64_t begin, std::span<int64_t> out) const {
  const auto& index = state_->index;
  COPPICE_CHECK(begin <= index.tokens && out.size() <= index.tokens - begin, "tokens ", begin, " + ", out.size(),
                " of ", index.tokens);
  state_->bin.check_whole();
  const std::byte* from = state_->bin.bytes().data() + begin * index.type.bytes;
  switch (index.type.code) {
    case 1: widen<uint8_t>(from, out); break;
    case 2: widen<int8_t>(from, out); break;
    case 3: widen<int16_t>(from, out); break;
    case 4: widen<int32_t>(from, out); break;
    case 5: widen<int64_t>(from, out); break;
    default: widen<uint16_t>(from, out);
  }
  const int64_t vocab_size = state_->vocab_size.load(std::memory_order_relaxed);
  if (vocab_size == kAnyId) return;
  const auto bad = std::ranges::find_if(out, [&](int64_t id) { return id < 0 || id >= vocab_size; });
  if (bad == out.end()) return;
  throw Error(ErrorCode::kFormat, cat(with_suffix(path(), ".bin"), ": token ",
                                      begin + static_cast<uint64_t>(bad - out.begin()), " is ", *bad, "; wanted 0 to ",
                                      vocab_size - 1, " (the file changed or is damaged: tokenize the text again)"));
}

std::pair<uint64_t, uint64_t> TokenFile::document(uint64_t index) const {
  COPPICE_CHECK(index < num_documents(), "document ", index, " of ", num_documents());
  return {state_->index.document_begin(index), state_->index.document_begin(index + 1)};
}

void TokenFile::document_starts(uint64_t begin, std::span<int64_t> out) const {
  const auto& index = state_->index;
  COPPICE_CHECK(begin <= index.tokens && out.size() <= index.tokens - begin, "tokens ", begin, " + ", out.size(),
                " of ", index.tokens);
  // The first document that starts past `begin`: what comes before it belongs to one that starts at or before `begin`.
  const auto documents = std::views::iota(uint64_t{0}, index.documents);
  uint64_t next = *std::ranges::upper_bound(documents, begin, {}, [&](uint64_t d) { return index.document_begin(d); });
  int64_t start = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    for (; next < index.documents && index.document_begin(next) <= begin + i; ++next) start = static_cast<int64_t>(i);
    out[i] = start;
  }
}

std::string TokenFile::digest() const {
  Json known = detail::known_of(path());
  if (const Json* const digest = known.find(detail::kSha256)) return digest->as_string();
  const std::string found = sha256_of_file(with_suffix(path(), ".bin"));
  known[detail::kSha256] = found;
  detail::remember(path(), known);
  return found;
}

void TokenFile::check_vocabulary(int64_t vocab_size, const std::string& tokenizer_digest) const {
  if (card()) {
    if (card()->vocab_size > vocab_size) {
      throw Error(ErrorCode::kFormat,
                  cat(path(), ": was made with a vocabulary of ", card()->vocab_size, ", but the model has ",
                      vocab_size, " (tokenize the text with the model's own tokenizer)"));
    }
    if (!tokenizer_digest.empty() && card()->tokenizer_digest != tokenizer_digest) {
      throw Error(ErrorCode::kFormat, cat(path(), ": was made with tokenizer ", card()->tokenizer_digest.substr(0, 12),
                                          ", but the model's is ", tokenizer_digest.substr(0, 12),
                                          " (tokenize the text with the model's own tokenizer)"));
    }
    return;  // read() checks the ids against the card
  }
  log_warning(
      cat(path(), ": has no .json card of coppice, so its tokenizer is unknown; only the range of its ids is checked"));
  if (num_tokens() == 0) return;
  const IdRange range = id_range(*this);
  if (range.least < 0 || range.greatest >= vocab_size) {
    throw Error(ErrorCode::kFormat, cat(path(), ": has ids from ", range.least, " to ", range.greatest,
                                        "; wanted ids of the model's vocabulary, 0 to ", vocab_size - 1,
                                        " (tokenize the text with the model's own tokenizer)"));
  }
  // The file may change from here on. If several models share the file, the smallest vocabulary is the limit.
  int64_t before = state_->vocab_size.load();
  while (vocab_size < before && !state_->vocab_size.compare_exchange_weak(before, vocab_size)) {
  }
}

std::vector<TokenFile> open_token_files(const std::filesystem::path& model, int64_t vocab_size,
                                        std::span<const std::filesystem::path> paths) {
  const std::string digest = tokenizer_digest(model);
  std::vector<TokenFile> files;
  for (const auto& path : paths) {
    files.push_back(TokenFile::open(path));
    files.back().check_vocabulary(vocab_size, digest);
  }
  return files;
}

}  // namespace coppice::data
