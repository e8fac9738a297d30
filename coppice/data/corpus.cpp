#include "coppice/data/corpus.h"

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/json_reader.h"
#include "coppice/base/log.h"
#include "coppice/base/progress.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/data/corpus_packages.h"
#include "coppice/data/scratch_directory.h"
#include "coppice/data/subprocess.h"
#include "coppice/data/text_input.h"
#include "coppice/io/atomic_file.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

constexpr int kCacheVersion = 1;  // raised when a stripper changes what it gives

/// Keeps whole documents up to `limit` bytes, at least one, and fills in size and digest.
void trim(Domain& domain, uint64_t limit) {
  Sha256 digest;
  size_t kept = 0;
  for (; kept < domain.documents.size(); ++kept) {
    const auto& document = domain.documents[kept];
    if (kept > 0 && domain.bytes + document.size() > limit) break;
    domain.bytes += document.size();
    digest.add(document);
    digest.add("\n");
  }
  domain.documents.resize(kept);
  domain.digest = digest.hex();
}

/// Fetches and strips one package into `text` (JSON lines) and `card`; the card appears last.
void prepare(const CorpusPackage& row, const fs::path& corpus, const fs::path& text, const fs::path& card) {
  log_info(cat("fetching ", row.package, " for the domain '", row.domain, "'"));
  const ScratchDirectory scratch(corpus / cat(".", row.domain, ".tmp-"));
  run_program(
      {"apt-get", "download", "-q", std::string(row.package)}, scratch.path(),
      "run `apt-get update` as root and see that a Debian mirror is reachable, or give your own text with --text DIR");
  fs::path deb;
  for (const auto& entry : fs::directory_iterator(scratch.path())) {
    if (entry.path().extension() == ".deb") deb = entry.path();
  }
  if (deb.empty())
    throw Error(ErrorCode::kIo,
                cat("apt-get download ", row.package, ": left no .deb file (give your own text with --text DIR)"));
  const std::string advice = "is dpkg installed, and the disk not full?";
  std::string version = run_program({"dpkg-deb", "-f", deb.string(), "Version"}, scratch.path(), advice);
  while (!version.empty() && version.back() == '\n') version.pop_back();
  run_program({"dpkg-deb", "-x", deb.string(), (scratch.path() / "root").string()}, scratch.path(), advice);

  std::string lines;
  const auto documents = read_package(row, scratch.path() / "root");
  for (const auto& document : documents) lines += Json::object({{"text", Json(document)}}).dump() + "\n";
  Json about = Json::object();
  about["coppice_corpus"] = kCacheVersion;
  about["domain"] = row.domain;
  about["package"] = row.package;
  about["version"] = version;
  about["documents"] = static_cast<uint64_t>(documents.size());
  io::write_file_atomically(text, lines);
  io::write_file_atomically(card, about.dump(2) + "\n");
}

bool is_ready(const fs::path& text, const fs::path& card) {
  return fs::exists(text) && fs::exists(card) && JsonReader::read(card).at("coppice_corpus").as_int() == kCacheVersion;
}

}  // namespace

std::vector<Domain> fetch_debian_corpus(const fs::path& cache_dir, uint64_t bytes_per_domain) {
  const fs::path corpus = fs::absolute(cache_dir) / "corpus";
  fs::create_directories(corpus);
  std::vector<Domain> out;
  Progress progress("corpus", corpus_packages().size(), ProgressUnit::kItems);
  for (const auto& row : corpus_packages()) {
    const fs::path text = corpus / cat(row.domain, ".jsonl"), card = corpus / cat(row.domain, ".json");
    if (!is_ready(text, card)) prepare(row, corpus, text, card);
    Domain domain{.name = std::string(row.domain),
                  .documents = {},
                  .package = std::string(row.package),
                  .version = JsonReader::read(card).at("version").as_string(),
                  .digest = {}};
    uint64_t read = 0;
    read_documents(text, {}, [&](std::string&& document) {
      if (read > bytes_per_domain) return;
      read += document.size();
      domain.documents.push_back(std::move(document));
    });
    trim(domain, bytes_per_domain);
    out.push_back(std::move(domain));
    progress.advance(1);
  }
  return out;
}

std::vector<Domain> read_corpus(const fs::path& directory, uint64_t bytes_per_domain) {
  if (!fs::is_directory(directory)) throw Error(ErrorCode::kNotFound, cat(directory, ": is no directory"));
  std::vector<fs::path> entries;
  for (const auto& entry : fs::directory_iterator(directory)) {
    const auto extension = entry.path().extension();
    const bool text = extension == ".txt" || extension == ".jsonl";
    if (!entry.path().filename().string().starts_with(".") && (entry.is_directory() || text))
      entries.push_back(entry.path());
  }
  std::ranges::sort(entries);
  std::vector<Domain> out;
  for (const auto& entry : entries) {
    Domain domain{.name = entry.stem().string(), .documents = {}, .package = {}, .version = {}, .digest = {}};
    if (std::ranges::any_of(out, [&](const Domain& d) { return d.name == domain.name; })) {
      throw Error(ErrorCode::kFormat, cat(entry, ": two domains are named '", domain.name, "' (rename one)"));
    }
    for (const auto& file : list_text_files(std::span(&entry, 1))) {
      read_documents(file, {}, [&](std::string&& document) {
        for (auto& part : split_long(document, kCorpusDocumentBytes)) domain.documents.push_back(std::move(part));
      });
    }
    if (domain.documents.empty()) throw Error(ErrorCode::kNotFound, cat(entry, ": has no text"));
    shuffle_documents(domain.documents);
    trim(domain, bytes_per_domain);
    out.push_back(std::move(domain));
  }
  if (out.empty())
    throw Error(ErrorCode::kNotFound,
                cat(directory, ": has no sub-folder and no .txt or .jsonl file (one for each domain)"));
  return out;
}

}  // namespace coppice::data
