#include "coppice/upcycle/verify_files.h"

#include <algorithm>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/upcycle/verify_config.h"

namespace coppice::upcycle {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGenerationConfig = "generation_config.json";

std::set<fs::path> files_of(const families::Model& model) {
  const std::vector<fs::path> files = model.checkpoint.companion_files();
  return {files.begin(), files.end()};
}

bool same_file(const fs::path& a, const fs::path& b) {
  return fs::file_size(a) == fs::file_size(b) && sha256_of_file(a) == sha256_of_file(b);
}

/// Programs write their version and default values into it.
void compare_generation_configs(const fs::path& before, const fs::path& after, FileAccount& account) {
  try {
    ConfigDifferences found = compare_settings(kGenerationConfig, Json::read(before), Json::read(after));
    if (found.problems.empty()) ++account.equal;
    std::ranges::move(found.problems, std::back_inserter(account.problems));
    if (!found.added.empty())
      account.not_compared.push_back(cat("new keys of ", kGenerationConfig, " (", join(found.added), ")"));
  } catch (const Error& error) {
    if (error.code != ErrorCode::kFormat) throw;
    account.problems.emplace_back(error.what());
  }
}

}  // namespace

FileAccount compare_files(const families::Model& before, const families::Model& after, bool complete) {
  FileAccount account;
  const fs::path &from = before.checkpoint.directory(), &to = after.checkpoint.directory();
  const std::set<fs::path> was = files_of(before), is = files_of(after);
  std::vector<std::string> missing, extra;
  for (const fs::path& file : was) {
    check_interrupt();
    if (!is.contains(file)) {
      missing.push_back(file.string());
    } else if (same_file(from / file, to / file)) {
      ++account.equal;
    } else if (file == kGenerationConfig) {
      compare_generation_configs(from / file, to / file, account);
    } else {
      account.problems.push_back(cat("'", file, "': it changed; the files beside the weights stay as they are"));
    }
  }
  for (const fs::path& file : is) {
    if (!was.contains(file)) extra.push_back(file.string());
  }
  constexpr size_t kListed = 8;
  if (complete) {
    for (const std::string& file : missing) account.problems.push_back(cat("'", file, "': it is missing"));
  } else if (!missing.empty()) {
    account.not_compared.push_back(cat("files that are not there any more (", join_some(missing, kListed), ")"));
  }
  if (!extra.empty()) account.not_compared.push_back(cat("files that are new (", join_some(extra, kListed), ")"));
  return account;
}

}  // namespace coppice::upcycle
