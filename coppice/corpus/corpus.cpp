#include "coppice/corpus/corpus.h"

#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/json_reader.h"
#include "coppice/base/log.h"
#include "coppice/base/progress.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/corpus/packages.h"
#include "coppice/data/scratch_directory.h"
#include "coppice/data/subprocess.h"
#include "coppice/data/text_input.h"
#include "coppice/io/atomic_file.h"

namespace coppice::corpus {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kFolder = "corpus-2";  // the number goes up when the same packages give other text

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

/// Fetches one package and writes its text to `text` (JSON lines) and `card`; the card appears last.
void prepare(const Package& package, const fs::path& corpus, const fs::path& text, const fs::path& card) {
  log_info(cat("fetching ", package.name, " for the domain '", package.domain, "'"));
  const data::ScratchDirectory scratch(corpus / cat(".", package.domain, ".tmp-"));
  data::run_program(
      {"apt-get", "download", "-q", std::string(package.name)}, scratch.path(),
      "run `apt-get update` as root and see that a Debian mirror is reachable, or give your own text with --text DIR");
  fs::path deb;
  for (const auto& entry : fs::directory_iterator(scratch.path())) {
    if (entry.path().extension() == ".deb") deb = entry.path();
  }
  if (deb.empty())
    throw Error(ErrorCode::kIo, cat("apt-get download ", package.name,
                                    ": did not write a .deb file (give your own text with --text DIR)"));
  const std::string advice = "check that dpkg is installed and the disk is not full";
  std::string version = data::run_program({"dpkg-deb", "-f", deb.string(), "Version"}, scratch.path(), advice);
  while (!version.empty() && version.back() == '\n') version.pop_back();
  data::run_program({"dpkg-deb", "-x", deb.string(), (scratch.path() / "root").string()}, scratch.path(), advice);

  std::string lines;
  const auto documents = read_package(package, scratch.path() / "root");
  for (const auto& document : documents) lines += Json::object({{"text", Json(document)}}).dump() + "\n";
  Json about = Json::object();
  about["domain"] = package.domain;
  about["package"] = package.name;
  about["version"] = version;
  about["documents"] = static_cast<uint64_t>(documents.size());
  io::write_file_atomically(text, lines);
  io::write_file_atomically(card, about.dump(2) + "\n");
}

}  // namespace

std::vector<Domain> fetch_domains(const fs::path& cache_dir, uint64_t bytes_per_domain) {
  const fs::path corpus = fs::absolute(cache_dir) / kFolder;
  fs::create_directories(corpus);
  std::vector<Domain> out;
  Progress progress("corpus", packages().size(), ProgressUnit::kItems);
  for (const auto& package : packages()) {
    const fs::path text = corpus / cat(package.domain, ".jsonl"), card = corpus / cat(package.domain, ".json");
    if (!fs::exists(text) || !fs::exists(card)) prepare(package, corpus, text, card);
    Domain domain{.name = std::string(package.domain),
                  .documents = {},
                  .package = std::string(package.name),
                  .version = JsonReader::read(card).at("version").as_string(),
                  .digest = {}};
    uint64_t read = 0;
    data::read_documents(text, {}, [&](std::string&& document) {
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

std::vector<Domain> read_domains(const fs::path& directory, uint64_t bytes_per_domain) {
  if (!fs::is_directory(directory)) throw Error(ErrorCode::kNotFound, cat(directory, ": is not a directory"));
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
    for (const auto& file : data::list_text_files(std::span(&entry, 1))) {
      data::read_documents(file, {}, [&](std::string&& document) {
        for (auto& part : split_long(document, kDocumentBytes)) domain.documents.push_back(std::move(part));
      });
    }
    if (domain.documents.empty()) throw Error(ErrorCode::kNotFound, cat(entry, ": has no text"));
    shuffle_documents(domain.documents);
    trim(domain, bytes_per_domain);
    out.push_back(std::move(domain));
  }
  if (out.empty())
    throw Error(ErrorCode::kNotFound,
                cat(directory, ": has no subdirectory and no .txt or .jsonl file; wanted one for each domain"));
  return out;
}

}  // namespace coppice::corpus
