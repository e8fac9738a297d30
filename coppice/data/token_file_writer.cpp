#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <limits>
#include <system_error>

#include "coppice/base/check.h"
#include "coppice/base/json.h"
#include "coppice/data/token_file.h"
#include "coppice/data/token_index_detail.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

/// A file written from its start to its end under a temporary name.
class PendingFile {
 public:
  PendingFile(const fs::path& prefix, std::string_view suffix)
      : target_(prefix.string() + std::string(suffix)),
        temporary_(target_.parent_path() / cat(".", target_.filename(), ".tmp-", ::getpid())) {
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd_ < 0) fail("cannot be created");
  }
  ~PendingFile() {
    if (fd_ >= 0) ::close(fd_);
    std::error_code ignored;
    if (!renamed_) fs::remove(temporary_, ignored);
  }
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;

  void append(const void* data, size_t bytes) {
    buffer_.append(static_cast<const char*>(data), bytes);
    if (buffer_.size() >= kBufferBytes) flush();
  }
  template <class T>
  void append(T value) {
    append(&value, sizeof value);
  }
  /// On disk under the temporary name.
  void settle() {
    flush();
    if (::fsync(fd_) != 0) fail("cannot be synced");
    const int fd = fd_;
    fd_ = -1;
    if (::close(fd) != 0) fail("cannot be closed");
  }
  void rename() {
    if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail("cannot be renamed into place");
    renamed_ = true;
  }

 private:
  static constexpr size_t kBufferBytes = 1 << 20;

  void flush() {
    size_t done = 0;
    while (done < buffer_.size()) {
      const auto n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("cannot be written");
      done += static_cast<size_t>(n);
    }
    buffer_.clear();
  }
  [[noreturn]] void fail(std::string_view what) const {
    throw Error(ErrorCode::kIo, cat(target_, ": ", what, ": ", std::generic_category().message(errno)));
  }

  fs::path target_, temporary_;
  std::string buffer_;
  int fd_ = -1;
  bool renamed_ = false;
};

void sync_directory(const fs::path& directory) {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const bool ok = fd >= 0 && ::fsync(fd) == 0;
  const int why = errno;
  if (fd >= 0) ::close(fd);
  if (!ok) throw Error(ErrorCode::kIo, cat(directory, ": cannot be synced: ", std::generic_category().message(why)));
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
  for (const auto suffix : kSuffixes) {
    const fs::path file = prefix.string() + std::string(suffix);
    if (fs::exists(file))
      throw Error(ErrorCode::kUsage, cat(file, ": exists already (choose another name or remove it)"));
  }
}

struct TokenFileWriter::State {
  State(const fs::path& path, int64_t vocabulary)
      : prefix(fs::absolute(path)),
        vocab_size(vocabulary),
        narrow(vocabulary <= detail::kMaxVocabU16),
        bin(prefix, ".bin") {}

  fs::path prefix;
  int64_t vocab_size;
  bool narrow;
  PendingFile bin;
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
    throw Error(ErrorCode::kFormat, cat(s.prefix, ": document ", s.lengths.size(), " has ", ids.size(),
                                        " tokens; the format holds 2147483647 (split it)"));
  }
  for (const int32_t id : ids) {
    if (id < 0 || id >= s.vocab_size) {
      throw Error(ErrorCode::kFormat,
                  cat(s.prefix, ": document ", s.lengths.size(), " has id ", id, "; wanted 0 to ", s.vocab_size - 1));
    }
  }
  if (s.narrow) {
    for (const int32_t id : ids) s.bin.append(static_cast<uint16_t>(id));
  } else {
    s.bin.append(ids.data(), ids.size_bytes());
  }
  s.lengths.push_back(static_cast<int32_t>(ids.size()));
  s.tokens += ids.size();
}

void TokenFileWriter::finish(TokenFileCard card) {
  auto& s = *state_;
  card.vocab_size = s.vocab_size;
  card.documents = s.lengths.size();
  card.tokens = s.tokens;

  PendingFile idx(s.prefix, ".idx"), json(s.prefix, ".json");
  const uint64_t documents = s.lengths.size();
  idx.append(detail::kIndexMagic.data(), detail::kIndexMagic.size());
  idx.append(detail::kIndexVersion);
  idx.append(static_cast<uint8_t>(s.narrow ? 8 : 4));
  idx.append(documents);
  idx.append(documents + 1);
  idx.append(s.lengths.data(), s.lengths.size() * sizeof(int32_t));
  uint64_t begin = 0;
  for (const int32_t length : s.lengths) {
    idx.append(begin);
    begin += static_cast<uint64_t>(length) * (s.narrow ? 2 : 4);
  }
  for (uint64_t i = 0; i <= documents; ++i) idx.append(i);
  const std::string text = card_text(card);
  json.append(text.data(), text.size());

  s.bin.settle();
  json.settle();
  idx.settle();
  check_token_file_absent(s.prefix);
  // Without its .idx no set opens, so that one comes last.
  s.bin.rename();
  json.rename();
  sync_directory(s.prefix.parent_path());
  idx.rename();
  sync_directory(s.prefix.parent_path());
}

}  // namespace coppice::data
