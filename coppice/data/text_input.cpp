#include "coppice/data/text_input.h"

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/json.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"
#include "coppice/data/text_stream.h"
#include "coppice/data/utf8.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

constexpr uint32_t kSamplePurpose = 0x71;
constexpr size_t kReadBytes = size_t{1} << 20;
constexpr size_t kSliceBytes = 64 << 10;

void read_plain(const fs::path& file, bool split_at_blank_lines, const std::function<void(std::string&&)>& take) {
  TextStream stream(file);
  std::string text;
  for (size_t filled = 0;;) {
    if (text.size() - filled < kReadBytes) text.resize(2 * filled + kReadBytes);
    const size_t n = stream.read(std::span(text).subspan(filled));
    filled += n;
    if (n != 0) continue;
    text.resize(filled);
    break;
  }
  if (const auto bad = find_invalid_utf8(text)) {
    throw Error(ErrorCode::kFormat,
                cat(file, ": byte ", *bad, " is not UTF-8 (convert the file, for example with iconv)"));
  }
  if (!split_at_blank_lines) {
    if (!text.empty()) take(std::move(text));
    return;
  }
  std::string document;
  const auto flush = [&] {
    if (!document.empty()) take(std::move(document));
    document.clear();
  };
  for (size_t begin = 0; begin < text.size();) {
    const size_t newline = text.find('\n', begin);
    const size_t end = newline == text.npos ? text.size() : newline + 1;
    const auto line = std::string_view(text).substr(begin, end - begin);
    if (line == "\n" || line == "\r\n")
      flush();
    else
      document += line;
    begin = end;
  }
  flush();
}

void read_jsonl(const fs::path& file, const std::string& key, const std::function<void(std::string&&)>& take) {
  TextStream stream(file);
  std::string line;
  for (uint64_t number = 1; stream.read_line(line); ++number) {
    check_interrupt();
    if (line.find_first_not_of(" \t\r\n") == line.npos) continue;
    const Json object = Json::parse(line, cat(file, ", line ", number));
    const Json* text = object.find(key);
    if (text == nullptr || !text->is_string()) {
      throw Error(ErrorCode::kFormat,
                  cat(file, ": line ", number, " has no text under '", key, "' (give the right key with --text-key)"));
    }
    // JSON can have lone surrogates, which UTF-8 cannot encode.
    if (find_invalid_utf8(text->as_string())) {
      throw Error(ErrorCode::kFormat, cat(file, ": line ", number, ": the text is not Unicode (remove the line)"));
    }
    if (!text->as_string().empty()) take(std::string(text->as_string()));
  }
}

bool is_json_lines(std::string_view extension) {
  return extension == ".jsonl" || extension == ".ndjson" || extension == ".json";
}

/// Whether a file in a searched directory counts as text. Unsupported compressed files count too, so that they are
/// refused and not skipped.
bool is_text_name(const fs::path& path) {
  constexpr std::string_view kPacked[] = {".gz", ".zst", ".bz2", ".xz", ".lz4"};
  const bool is_packed = std::ranges::find(kPacked, path.extension().string()) != std::end(kPacked);
  const std::string extension = (is_packed ? path.stem() : path.filename()).extension().string();
  return extension == ".txt" || extension == ".jsonl" || (is_packed && is_json_lines(extension));
}

}  // namespace

std::vector<fs::path> list_text_files(std::span<const fs::path> paths) {
  std::vector<fs::path> out;
  for (const auto& path : paths) {
    if (!fs::exists(path)) throw Error(ErrorCode::kNotFound, cat(path, ": does not exist"));
    if (!fs::is_directory(path)) {
      (void)open_to_read(path);
      out.push_back(path);
      continue;
    }
    std::vector<fs::path> found;
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (entry.is_regular_file() && is_text_name(entry.path())) found.push_back(entry.path());
    }
    if (found.empty())
      throw Error(ErrorCode::kNotFound,
                  cat(path, ": has no .txt or .jsonl file (give files with other endings one by one)"));
    std::ranges::sort(found);
    out.insert(out.end(), found.begin(), found.end());
  }
  return out;
}

void read_documents(const fs::path& file, const TextFormat& format, const std::function<void(std::string&&)>& take) {
  check_interrupt();
  if (is_json_lines(text_extension(file)))
    read_jsonl(file, format.text_key, take);
  else
    read_plain(file, format.split_at_blank_lines, take);
}

std::vector<std::string> sample_text(std::span<const fs::path> files, const TextFormat& format, uint64_t bytes,
                                     uint64_t seed) {
  uint64_t total = 0;
  for (const auto& file : files) total += text_bytes(file);
  const Rng rng({.seed = seed, .purpose = kSamplePurpose});
  const double share = static_cast<double>(bytes) / static_cast<double>(std::max<uint64_t>(total, 1));
  std::vector<std::string> out;
  uint64_t slice = 0;
  for (const auto& file : files) {
    read_documents(file, format, [&](std::string&& document) {
      for (size_t begin = 0; begin < document.size();) {
        const size_t end = character_boundary(document, begin + kSliceBytes);
        if (rng.uniform(slice++) < share) out.push_back(document.substr(begin, end - begin));
        begin = end;
      }
    });
  }
  return out;
}

}  // namespace coppice::data
