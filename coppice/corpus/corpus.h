#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace coppice::corpus {

/// Clean text of one kind, and where it is from.
struct Domain {
  std::string name;
  std::vector<std::string> documents;  ///< none empty, shuffled, at most 16 KiB each
  std::string package, version;        ///< Debian's; empty for the user's own text
  std::string digest;                  ///< SHA-256 of the documents, each ended by a newline
  uint64_t bytes = 0;                  ///< of all documents
};

/// Real text in six clearly different domains (Perl documentation, a dictionary, German, French, Python and C), from
/// Debian packages. `apt-get download` fetches them, `dpkg-deb` unpacks them, and `mandoc` and `pod2text` make text of
/// manual pages and POD. The text is kept under `cache_dir` as JSON lines, so that the next call needs no network. The
/// same packages give the same bytes.
///
/// Memory   the text of one package, and `bytes_per_domain` of every domain.
/// Throws   Error{kIo}: no network, no package lists or a missing program (says what to install), no space.
std::vector<Domain> fetch_domains(const std::filesystem::path& cache_dir, uint64_t bytes_per_domain);

/// The user's own text: each sub-folder of `directory` (searched for .txt and .jsonl files) and each such file in it is
/// one domain.
///
/// Throws   Error{kNotFound}: no directory, or no text in it; Error{kFormat}: not UTF-8.
std::vector<Domain> read_domains(const std::filesystem::path& directory, uint64_t bytes_per_domain);

}  // namespace coppice::corpus
