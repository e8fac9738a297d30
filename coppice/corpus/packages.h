#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::corpus {

/// One row: a Debian package, its files that hold text, and the function that makes text of one file.
struct Package {
  std::string_view domain, name;
  std::string_view folder, suffix;  ///< files under FOLDER that end in SUFFIX
  std::string (*text_of)(const std::filesystem::path& file);
};

std::span<const Package> packages();

/// All clean documents of an unpacked package, shuffled. Files are taken in the order of their paths. A paragraph that
/// an earlier file has too (a licence, an address for bug reports) is left out; long files are cut at paragraphs; parts
/// that are short, are mostly digits and signs, or are not UTF-8 are left out.
///
/// Throws   Error{kFormat} if the package has no text.
std::vector<std::string> read_package(const Package& package, const std::filesystem::path& root);

/// Cuts a document at empty lines, else at line ends, else between characters, into parts of at most `max_bytes`.
std::vector<std::string> split_long(std::string_view document, size_t max_bytes);

/// The same random order for the same number of documents.
void shuffle_documents(std::vector<std::string>& documents);

inline constexpr size_t kDocumentBytes = 16 << 10;

}  // namespace coppice::corpus
