#include "coppice/data/corpus_packages.h"

#include <algorithm>
#include <cctype>
#include <unordered_set>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"
#include "coppice/data/strip_markup.h"
#include "coppice/data/text_stream.h"
#include "coppice/data/utf8.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

constexpr uint32_t kShufflePurpose = 0x72;
constexpr size_t kScrapBytes = 120;

template <std::string (*strip)(std::string_view)>
std::vector<std::string> one(std::string_view file) {
  return {strip(file)};
}

constexpr CorpusPackage kPackages[] = {
    {"perl", "perl-doc", "usr/share/perl", ".pod", one<strip_pod>},
    {"dictionary", "dict-gcide", "usr/share/dictd", "gcide.dict.dz", split_dictionary},
    {"german", "manpages-de", "usr/share/man/de", ".gz", one<strip_roff>},
    {"french", "manpages-fr", "usr/share/man/fr", ".gz", one<strip_roff>},
    {"python", "libpython3.11-stdlib", "usr/lib/python3.11", ".py", one<strip_code>},
    {"c", "linux-libc-dev", "usr/include", ".h", one<strip_code>},
};

/// The whole of a file, unpacked if it is packed.
std::string read_packed(const fs::path& path) {
  TextStream stream(path);
  std::string out;
  std::vector<char> piece(1 << 20);
  while (const size_t n = stream.read(piece)) out.append(piece.data(), n);
  return out;
}

/// Whether letters and white space make up most of it: tables of numbers and names of characters do not teach a
/// language.
bool reads_like_text(std::string_view text) {
  const auto plain = std::ranges::count_if(text, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x80 || std::isalpha(byte) != 0 || std::isspace(byte) != 0;
  });
  return static_cast<size_t>(plain) * 10 >= text.size() * 6;
}

}  // namespace

std::span<const CorpusPackage> corpus_packages() { return kPackages; }

std::vector<std::string> split_long(std::string_view document, size_t max_bytes) {
  std::vector<std::string> out;
  while (document.size() > max_bytes) {
    const auto window = document.substr(0, max_bytes);
    size_t cut = character_boundary(document, max_bytes);
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

std::vector<std::string> read_package(const CorpusPackage& row, const fs::path& root) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(root / row.folder)) {
    if (entry.is_regular_file() && !entry.is_symlink() && entry.path().string().ends_with(row.suffix))
      files.push_back(entry.path());
  }
  std::ranges::sort(files);
  std::vector<std::string> out;
  std::unordered_set<std::string> seen;
  for (const auto& file : files) {
    check_interrupt();
    for (const auto& document : row.documents(read_packed(file))) {
      if (document.size() < kScrapBytes || find_invalid_utf8(document) || document.find('\0') != document.npos)
        continue;
      for (auto& part : split_long(document, kCorpusDocumentBytes)) {
        if (part.size() >= kScrapBytes && reads_like_text(part) && seen.insert(part).second)
          out.push_back(std::move(part));
      }
    }
  }
  if (out.empty()) {
    throw Error(ErrorCode::kFormat, cat(row.package, ": has no text under ", row.folder,
                                        " (another release of Debian? give your own text instead)"));
  }
  shuffle_documents(out);
  return out;
}

}  // namespace coppice::data
