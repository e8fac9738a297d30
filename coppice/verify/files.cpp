#include "coppice/verify/files.h"

#include <algorithm>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/text.h"
#include "coppice/io/file_rules.h"
#include "coppice/io/model_directory.h"
#include "coppice/verify/config.h"

namespace coppice::verify {
namespace {

namespace fs = std::filesystem;

constexpr const char* kGenerationConfig = "generation_config.json";

std::set<fs::path> files_of(const families::Model& model) {
  const std::vector<fs::path> files = io::sort_files(model.checkpoint).carried;
  return {files.begin(), files.end()};
}

bool same_file(const io::ModelDirectory& a, const io::ModelDirectory& b, const fs::path& file) {
  return a.sha256(file) == b.sha256(file);
}

/// Programs write their version and default values into it.
void compare_generation_configs(const io::ModelDirectory& before, const io::ModelDirectory& after,
                                FileAccount& account) {
  try {
    ConfigDifferences found =
        compare_settings(kGenerationConfig, before.read_json(kGenerationConfig), after.read_json(kGenerationConfig));
    if (found.problems.empty()) ++account.equal;
    std::ranges::move(found.problems, std::back_inserter(account.problems));
    std::ranges::move(found.not_compared(kGenerationConfig), std::back_inserter(account.not_compared));
  } catch (const Error& error) {
    if (error.code != ErrorCode::kFormat) throw;
    account.problems.emplace_back(error.what());
  }
}

}  // namespace

FileAccount compare_files(const families::Model& before, const families::Model& after, bool complete) {
  FileAccount account;
  const io::ModelDirectory &from = before.checkpoint.files(), &to = after.checkpoint.files();
  const std::set<fs::path> was = files_of(before), is = files_of(after);
  std::vector<std::string> missing, extra;
  for (const fs::path& file : was) {
    check_interrupt();
    if (!is.contains(file)) {
      missing.push_back(file.string());
    } else if (same_file(from, to, file)) {
      ++account.equal;
    } else if (file == kGenerationConfig) {
      compare_generation_configs(from, to, account);
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

}  // namespace coppice::verify
