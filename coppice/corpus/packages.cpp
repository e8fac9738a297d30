#include "coppice/corpus/packages.h"

#include <algorithm>
#include <cctype>
#include <unordered_set>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"
#include "coppice/corpus/file_text.h"
#include "coppice/data/utf8.h"

namespace coppice::corpus {
namespace fs = std::filesystem;
namespace {

constexpr uint32_t kShufflePurpose = 0x72;
constexpr size_t kScrapBytes = 120;

constexpr Package kPackages[] = {
    {"perl", "perl-doc", "usr/share/perl", ".pod", pod_text},
    {"dictionary", "dict-wn", "usr/share/dictd", ".dict.dz", plain_text},
    {"german", "manpages-de", "usr/share/man/de", ".gz", manual_text},
    {"french", "manpages-fr", "usr/share/man/fr", ".gz", manual_text},
    {"python", "libpython3.11-stdlib", "usr/lib/python3.11", ".py", code_text},
    {"c", "linux-libc-dev", "usr/include", ".h", code_text},
};

/// Whether the text consists mostly of letters and white space; excludes tables of numbers and lists of characters.
bool reads_like_text(std::string_view text) {
  const auto plain = std::ranges::count_if(text, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x80 || std::isalpha(byte) != 0 || std::isspace(byte) != 0;
  });
  return static_cast<size_t>(plain) * 10 >= text.size() * 6;
}

/// `text` without the paragraphs that are in `seen`, which gets the others. Short ones stay: code needs its braces.
std::string without_repeats(std::string_view text, std::unordered_set<std::string>& seen) {
  std::string out;
  while (!text.empty()) {
    const size_t end = text.find("\n\n");
    const auto paragraph = text.substr(0, end == text.npos ? end : end + 2);
    text.remove_prefix(paragraph.size());
    if (paragraph.size() < kScrapBytes || seen.emplace(paragraph).second) out += paragraph;
  }
  return out;
}

}  // namespace

std::span<const Package> packages() { return kPackages; }

std::vector<std::string> split_long(std::string_view document, size_t max_bytes) {
  std::vector<std::string> out;
  while (document.size() > max_bytes) {
    const auto window = document.substr(0, max_bytes);
    size_t cut = data::character_boundary(document, max_bytes);
    if (const size_t blank = window.rfind("\n\n"); blank != window.npos && blank > 0)
      cut = blank + 2;
    else if (const size_t newline = window.rfind('\n'); newline != window.npos && newline > 0)
      cut = newline + 1;
    out.emplace_back(document.substr(0, cut));
    document.remove_prefix(cut);
  }
  if (!document.empty()) out.emplace_back(document);
  return out;
}

void shuffle_documents(std::vector<std::string>& documents) {
  const auto order = Rng({.purpose = kShufflePurpose}).permutation(static_cast<uint32_t>(documents.size()));
  std::vector<std::string> out;
  out.reserve(documents.size());
  for (const uint32_t i : order) out.push_back(std::move(documents[i]));
  documents = std::move(out);
}

std::vector<std::string> read_package(const Package& package, const fs::path& root) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(root / package.folder)) {
    if (entry.is_regular_file() && !entry.is_symlink() && entry.path().string().ends_with(package.suffix))
      files.push_back(entry.path());
  }
  std::ranges::sort(files);
  std::vector<std::string> out;
  std::unordered_set<std::string> seen;
  for (const auto& file : files) {
    check_interrupt();
    const std::string text = package.text_of(file);
    if (data::find_invalid_utf8(text) || text.find('\0') != text.npos) continue;
    for (auto& part : split_long(without_repeats(text, seen), kDocumentBytes)) {
      if (part.size() >= kScrapBytes && reads_like_text(part)) out.push_back(std::move(part));
    }
  }
  if (out.empty()) {
    throw Error(ErrorCode::kFormat, cat(package.name, ": has no text under ", package.folder,
                                        " (another release of Debian? give your own text instead)"));
  }
  shuffle_documents(out);
  return out;
}

}  // namespace coppice::corpus
