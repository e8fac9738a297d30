#include "coppice/data/text_stream.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/text.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

constexpr size_t kPieceBytes = size_t{256} << 10;
constexpr std::string_view kGzip = "\x1f\x8b";

/// Unsupported formats of corpora, recognised by their first bytes.
struct Packed {
  std::string_view magic, name, advice;
};
constexpr Packed kPacked[] = {{"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it, for example with `unzstd`"},
                              {"BZh", "bzip2-compressed", "unpack it, for example with `bunzip2`"},
                              {"\xfd"
                               "7zXZ",
                               "xz-compressed", "unpack it, for example with `unxz`"},
                              {"\x04\x22\x4d\x18", "lz4-compressed", "unpack it, for example with `unlz4`"},
                              {"PK\x03\x04", "a zip archive", "unpack it, for example with `unzip`"},
                              {"PAR1", "a parquet file", "write its texts as JSON lines"},
                              {"ARROW1", "an arrow file", "write its texts as JSON lines"},
                              {"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"}};

}  // namespace

struct TextStream::State {
  explicit State(fs::path name) : path(std::move(name)), file(open_to_read(path)), input(kPieceBytes) {
    refill();
    const std::string_view start(reinterpret_cast<const char*>(input.data()), end);
    for (const Packed& packed : kPacked) {
      if (!start.starts_with(packed.magic)) continue;
      throw Error(ErrorCode::kUnsupported,
                  cat(path, ": is ", packed.name, "; wanted text, or text packed with gzip (", packed.advice, ")"));
    }
    is_gzip = start.starts_with(kGzip);
    constexpr int kGzipOnly = 16 + MAX_WBITS;
    if (is_gzip && ::inflateInit2(&unpacker, kGzipOnly) != Z_OK)
      throw Error(ErrorCode::kIo, "gzip: not enough memory to decompress (use a machine with more)");
  }
  ~State() {
    if (is_gzip) ::inflateEnd(&unpacker);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  /// The next bytes of the file, once those before are used up.
  void refill() {
    begin = 0;
    end = read_some(file, input, path);
  }
  [[noreturn]] void fail(std::string_view what) const {
    throw Error(ErrorCode::kFormat, cat(path, ": its gzip data ", what, " (copy or download the file again)"));
  }

  size_t read_plain(std::span<char> out) {
    if (begin == end) refill();
    const size_t n = std::min(out.size(), end - begin);
    std::memcpy(out.data(), input.data() + begin, n);
    begin += n;
    return n;
  }

  size_t read_gzip(std::span<char> out) {
    unpacker.next_out = reinterpret_cast<Bytef*>(out.data());
    unpacker.avail_out = static_cast<uInt>(out.size());
    while (unpacker.avail_out == out.size()) {
      if (begin == end) refill();
      if (begin == end) {
        if (!between_members) fail("is incomplete");
        break;
      }
      if (between_members && !next_member()) break;
      unpacker.next_in = reinterpret_cast<Bytef*>(input.data() + begin);
      unpacker.avail_in = static_cast<uInt>(end - begin);
      const int result = ::inflate(&unpacker, Z_NO_FLUSH);
      begin = end - unpacker.avail_in;
      between_members = result == Z_STREAM_END;
      if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) fail("is damaged");
    }
    return out.size() - unpacker.avail_out;
  }

  /// After a gzip member: another member, or zeros up to the end, which tapes and some tools add.
  bool next_member() {
    if (input[begin] != std::byte{0}) {
      if (::inflateReset(&unpacker) != Z_OK) fail("is damaged");
      between_members = false;
      return true;
    }
    for (; begin != end; refill()) {
      const auto rest = std::span(input).subspan(begin, end - begin);
      if (std::ranges::any_of(rest, [](std::byte b) { return b != std::byte{0}; })) fail("is followed by other data");
    }
    return false;
  }

  fs::path path;
  Descriptor file;
  std::vector<std::byte> input;
  size_t begin = 0, end = 0;  // unused part of `input`
  bool is_gzip = false, between_members = false;
  z_stream unpacker{};
  std::string text;  // decompressed text, for lines
  size_t used = 0;   // used part of `text`
};

TextStream::TextStream(fs::path path) : state_(std::make_unique<State>(std::move(path))) {}
TextStream::~TextStream() = default;

size_t TextStream::read(std::span<char> out) {
  if (out.empty()) return 0;
  constexpr size_t kAtOnce = size_t{1} << 30;
  out = out.first(std::min(out.size(), kAtOnce));
  return state_->is_gzip ? state_->read_gzip(out) : state_->read_plain(out);
}

bool TextStream::read_line(std::string& line) {
  auto& s = *state_;
  line.clear();
  for (;;) {
    const size_t newline = s.text.find('\n', s.used);
    const size_t stop = newline == std::string::npos ? s.text.size() : newline + 1;
    line.append(s.text, s.used, stop - s.used);
    s.used = stop;
    if (newline != std::string::npos) return true;
    s.text.resize(kPieceBytes);
    s.used = 0;
    s.text.resize(read(s.text));
    if (s.text.empty()) return !line.empty();
  }
}

uint64_t text_bytes(const fs::path& path) {
  {
    const Descriptor file = open_to_read(path);
    std::array<std::byte, kGzip.size()> start{};
    const size_t n = read_some(file, start, path);
    if (std::string_view(reinterpret_cast<const char*>(start.data()), n) != kGzip) return state_of(file, path).bytes;
  }
  TextStream stream(path);
  std::vector<char> piece(kPieceBytes);
  uint64_t bytes = 0;
  while (const size_t n = stream.read(piece)) bytes += n;
  return bytes;
}

std::string text_extension(const fs::path& path) {
  return (path.extension() == ".gz" ? path.stem() : path.filename()).extension().string();
}

}  // namespace coppice::data
