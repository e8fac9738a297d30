#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::data {

/// One row: a Debian package, its files that hold text, and how text comes out of one.
struct CorpusPackage {
  std::string_view domain, package;
  std::string_view folder, suffix;  ///< files under FOLDER that end in SUFFIX; .gz and .dz are unpacked
  std::vector<std::string> (*documents)(std::string_view file);
};

std::span<const CorpusPackage> corpus_packages();

/// All clean documents of an unpacked package: files in the order of their paths, long ones cut at paragraphs into
/// parts, doubles, scraps and what is not UTF-8 left out, then shuffled.
std::vector<std::string> read_package(const CorpusPackage& row, const std::filesystem::path& root);

/// Cuts a document at empty lines, else at line ends, else between characters, into parts of at most `max_bytes`.
std::vector<std::string> split_long(std::string_view document, size_t max_bytes);

/// The same random order for the same number of documents.
void shuffle_documents(std::vector<std::string>& documents);

inline constexpr size_t kCorpusDocumentBytes = 16 << 10;

}  // namespace coppice::data
