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
constexpr size_t kListed = 8;

std::set<fs::path> carried(const io::SortedFiles& files) { return {files.carried.begin(), files.carried.end()}; }

bool same_file(const io::ModelDirectory& a, const io::ModelDirectory& b, const fs::path& file) {
  return a.sha256(file) == b.sha256(file);
}

/// Compares by meaning, because programs write their version and default values into it.
void compare_generation_configs(const io::ModelDirectory& before, const io::ModelDirectory& after, FileResult& result) {
  try {
    ConfigDifferences found =
        compare_settings(kGenerationConfig, before.read_json(kGenerationConfig), after.read_json(kGenerationConfig));
    if (found.problems.empty()) ++result.equal;
    std::ranges::move(found.problems, std::back_inserter(result.problems));
    std::ranges::move(found.not_compared(kGenerationConfig), std::back_inserter(result.not_compared));
  } catch (const Error& error) {
    if (error.code != ErrorCode::kFormat) throw;
    result.problems.emplace_back(error.what());
  }
}

bool has(const std::vector<io::JudgedFile>& files, const std::string& name) {
  return std::ranges::find(files, name, &io::JudgedFile::name) != files.end();
}

/// Reports files that no expansion writes: they could be taken for a part of the model, or belong to another one.
void report_others(const io::SortedFiles& before, const io::SortedFiles& after, FileResult& result) {
  std::vector<std::string> left_out;
  for (const io::JudgedFile& file : after.left_out) left_out.push_back(file.name);
  for (const io::JudgedFile& file : after.refused) {
    if (has(before.refused, file.name)) {
      left_out.push_back(file.name);
    } else {
      result.problems.push_back(cat("'", file.name, "': is new; the model before has no such file: ", file.reason));
    }
  }
  if (!left_out.empty())
    result.not_compared.push_back(cat("files that an expansion does not copy (", join_some(left_out, kListed), ")"));
}

}  // namespace

FileResult compare_files(const families::Model& before, const families::Model& after, bool complete) {
  FileResult result;
  const io::ModelDirectory &from = before.checkpoint.files(), &to = after.checkpoint.files();
  const io::SortedFiles sorted_before = io::sort_files(before.checkpoint),
                        sorted_after = io::sort_files(after.checkpoint);
  const std::set<fs::path> was = carried(sorted_before), is = carried(sorted_after);
  std::vector<std::string> missing, extra;
  for (const fs::path& file : was) {
    check_interrupt();
    if (!is.contains(file)) {
      missing.push_back(file.string());
    } else if (same_file(from, to, file)) {
      ++result.equal;
    } else if (file == kGenerationConfig) {
      compare_generation_configs(from, to, result);
    } else {
      result.problems.push_back(cat("'", file, "': changed; files beside the weights must not change"));
    }
  }
  for (const fs::path& file : is) {
    if (!was.contains(file)) extra.push_back(file.string());
  }
  if (complete) {
    for (const std::string& file : missing) result.problems.push_back(cat("'", file, "': is missing"));
  } else if (!missing.empty()) {
    result.not_compared.push_back(cat("files that are missing afterwards (", join_some(missing, kListed), ")"));
  }
  if (!extra.empty()) result.not_compared.push_back(cat("files that are new (", join_some(extra, kListed), ")"));
  report_others(sorted_before, sorted_after, result);
  return result;
}

}  // namespace coppice::verify
