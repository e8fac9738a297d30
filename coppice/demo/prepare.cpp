#include "coppice/demo/prepare.h"

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/corpus/corpus.h"
#include "coppice/data/cache_directory.h"
#include "coppice/data/tokenize.h"
#include "coppice/io/atomic_file.h"

namespace coppice::demo {
namespace {
namespace fs = std::filesystem;

constexpr uint64_t kBytesPerDomain = 4 << 20;
constexpr uint64_t kValidationBytes = 400 << 10;
constexpr uint64_t kFewestBytes = 200 << 10;
constexpr size_t kLongestRun = 16;  // of one character

// Rulers and blank columns: a window that holds one token a hundred times makes a gradient of ten times the usual norm.
std::string with_short_runs(std::string_view text) {
  std::string out;
  size_t run = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    run = i > 0 && text[i] == text[i - 1] ? run + 1 : 1;
    if (run <= kLongestRun) out += text[i];
  }
  return out;
}

std::vector<corpus::Domain> domains_of(const DemoOptions& options) {
  const fs::path cache = data::cache_directory();
  const fs::path kept = cache.empty() ? fs::path("/tmp/.cache/coppice") : cache;
  auto domains = options.text.empty() ? corpus::fetch_domains(kept, kBytesPerDomain)
                                      : corpus::read_domains(options.text, kBytesPerDomain);
  if (domains.size() < 2) {
    throw Error(ErrorCode::kUsage, cat(options.text, ": ", domains.size(),
                                       " domain; experts have nothing to specialise in (give at least two)"));
  }
  for (auto& domain : domains) {
    for (auto& document : domain.documents) document = with_short_runs(document);
    if (domain.bytes < kFewestBytes) {
      throw Error(ErrorCode::kUsage, cat("domain '", domain.name, "' has ", bytes_text(domain.bytes),
                                         " of text; at least ", bytes_text(kFewestBytes), " are wanted"));
    }
  }
  return domains;
}

// Documents come shuffled: the first ones are held out.
size_t validation_documents(const corpus::Domain& domain) {
  const uint64_t wanted = std::min(kValidationBytes, domain.bytes / 10);
  uint64_t bytes = 0;
  size_t count = 0;
  while (count + 1 < domain.documents.size() && bytes < wanted) bytes += domain.documents[count++].size();
  return count;
}

void write_everything(const DemoOptions& options, const fs::path& directory) {
  const auto domains = domains_of(options);
  fs::create_directories(directory / "text");
  fs::create_directories(directory / "data");
  std::vector<std::string> training_text;
  for (const auto& domain : domains) {
    io::write_file_atomically(directory / "text" / cat(domain.name, ".txt"), join(domain.documents, "\n\n"));
    const auto held_out = static_cast<ptrdiff_t>(validation_documents(domain));
    training_text.insert(training_text.end(), domain.documents.begin() + held_out, domain.documents.end());
  }
  log_info("training the tokenizer");
  const data::TokenizerTraining settings{.vocab_size = options.vocab_size, .sample_bytes = 4 << 20};
  data::train_tokenizer(training_text, settings, directory / "tokenizer");
  const auto tokenizer = data::open_tokenizer(directory / "tokenizer");
  Json sources = Json::object();
  for (const auto& domain : domains) {
    const std::span<const std::string> all(domain.documents);
    const auto held_out = validation_documents(domain);
    const auto prefix = directory / "data" / domain.name;
    const std::string source = domain.package.empty() ? domain.name : cat(domain.package, " ", domain.version);
    data::tokenize_documents(all.subspan(held_out), *tokenizer, prefix, {source});
    data::tokenize_documents(all.first(held_out), *tokenizer, cat(prefix.string(), "-validation"), {source});
    sources[domain.name] = Json::object(
        {{"package", domain.package}, {"version", domain.version}, {"sha256", domain.digest}, {"bytes", domain.bytes}});
  }
  io::write_file_atomically(directory / "sources.json", sources.dump(2) + "\n");
}

}  // namespace

PreparedData prepare_data(const DemoOptions& options) {
  if (!fs::exists(options.out / "sources.json")) {  // written last
    for (const char* part : {"text", "data", "tokenizer"}) fs::remove_all(options.out / part);
    write_everything(options, options.out);
  }
  PreparedData out;
  out.tokenizer = options.out / "tokenizer";
  out.sources = Json::read(options.out / "sources.json");
  for (const auto& [name, source] : out.sources.members()) {
    PreparedData::Domain domain{.name = name,
                                .train = options.out / "data" / name,
                                .validation = options.out / "data" / cat(name, "-validation")};
    domain.train_tokens = data::TokenFile::open(domain.train).num_tokens();
    domain.validation_tokens = data::TokenFile::open(domain.validation).num_tokens();
    out.domains.push_back(std::move(domain));
  }
  return out;
}

}  // namespace coppice::demo
