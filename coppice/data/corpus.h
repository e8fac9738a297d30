#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace coppice::data {

/// Clean text of one kind, and where it is from.
struct Domain {
  std::string name;
  std::vector<std::string> documents;  ///< none empty, shuffled, at most 16 KiB each
  std::string package, version;        ///< Debian's; empty for text of the user's own
  std::string digest;                  ///< SHA-256 of the documents, each ended by a newline
  uint64_t bytes = 0;                  ///< of all documents
};

/// Real text in six clearly different domains (Perl documentation, a dictionary, German, French, Python and C), from
/// Debian packages: fetched by `apt-get download`, unpacked by `dpkg-deb`, stripped of markup, and kept under
/// `cache_dir`/corpus as JSON lines, so that the next call needs no network. The same packages give the same bytes.
///
/// Memory   a package's text.
/// Throws   Error{kIo}: no network, no package lists (says what to do), no space.
std::vector<Domain> fetch_debian_corpus(const std::filesystem::path& cache_dir, uint64_t bytes_per_domain);

/// The user's own text: each sub-folder (searched for .txt and .jsonl files) and each such file of `directory` is a
/// domain.
///
/// Throws   Error{kNotFound}: no directory, or no text in it; Error{kFormat}: not UTF-8.
std::vector<Domain> read_corpus(const std::filesystem::path& directory, uint64_t bytes_per_domain);

}  // namespace coppice::data
