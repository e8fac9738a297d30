#include <algorithm>
#include <map>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/checkpoint.h"
#include "coppice/io/expert_mentions.h"
#include "coppice/io/file_rules.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

constexpr size_t kRefusedShown = 10;
constexpr uint64_t kMostCheckedBytes = uint64_t{4} << 20;  ///< larger ones are lists of words

class Sorter {
 public:
  explicit Sorter(const Checkpoint& checkpoint)
      : files_(checkpoint.files()), undoes_quantisation_(checkpoint.leaves_out_quantisation()) {
    const fs::path real = fs::canonical(files_.path());
    for (const auto& shard : checkpoint.shards()) {  // by its name, and the file behind it where that is a link
      weights_.insert(shard.path().lexically_relative(files_.path()));
      weights_.insert(fs::canonical(shard.path()).lexically_relative(real));
    }
  }

  SortedFiles sorted() && {
    files_.walk([&](const fs::path& relative, ModelDirectory::Entry entry) { return look(relative, entry); });
    std::ranges::sort(out_.carried);
    std::ranges::sort(out_.left_out, {}, &JudgedFile::name);
    std::ranges::sort(out_.refused, {}, &JudgedFile::name);
    return std::move(out_);
  }

 private:
  bool look(const fs::path& relative, ModelDirectory::Entry entry) {
    if (entry == ModelDirectory::Entry::kOther) {
      look_at(relative);
      return false;
    }
    if (entry == ModelDirectory::Entry::kEmptyFolder) {
      judge(FileDecision::kLeftOut, relative.string() + "/", "an empty folder");
      return false;
    }
    const FileRule* rule = folder_rule(relative);
    if (rule != nullptr) judge(rule->decision, relative.string() + "/", rule->reason);
    return rule == nullptr;
  }

  void look_at(const fs::path& relative) {
    if (weights_.contains(relative)) return;
    const FileRule& rule = file_rule(relative);
    if (undoes_quantisation_ && rule.kind == kQuantisationRecords)
      return judge(FileDecision::kLeftOut, relative.string(), "describes the quantisation, which is undone");
    FileDecision decision = rule.decision;
    if (decision == FileDecision::kChecked) {
      const Descriptor file = files_.open(relative);
      const bool is_small = state_of(file, relative).bytes <= kMostCheckedBytes;
      decision = is_small && mentions_experts(files_.read(relative)) ? FileDecision::kLeftOut : FileDecision::kCarried;
    } else if (decision == FileDecision::kCarried) {
      (void)files_.open(relative);  // is it a file?
    }
    judge(decision, relative.string(), rule.reason);
  }

  void judge(FileDecision decision, const std::string& name, std::string_view reason) {
    if (decision == FileDecision::kCarried) out_.carried.emplace_back(name);
    if (decision == FileDecision::kLeftOut) out_.left_out.push_back({name, std::string(reason)});
    if (decision == FileDecision::kRefused) out_.refused.push_back({name, std::string(reason)});
  }

  const ModelDirectory& files_;
  const bool undoes_quantisation_;
  std::set<fs::path> weights_;
  SortedFiles out_;
};

}  // namespace

SortedFiles sort_files(const Checkpoint& checkpoint) {
  try {
    return Sorter(checkpoint).sorted();
  } catch (const fs::filesystem_error& e) {
    throw Error(ErrorCode::kIo, cat(checkpoint.directory(), ": cannot list it: ", e.code().message()));
  }
}

SortedFiles files_to_carry(const Checkpoint& checkpoint) {
  SortedFiles sorted = sort_files(checkpoint);
  if (sorted.refused.empty()) return sorted;
  std::map<std::string, std::vector<std::string>> by_reason;
  for (const JudgedFile& file : sorted.refused) by_reason[file.reason].push_back(file.name);
  std::vector<std::string> parts;
  for (const auto& [reason, names] : by_reason) parts.push_back(cat(join_some(names, kRefusedShown), ": ", reason));
  throw Error(ErrorCode::kUnsupported, cat(checkpoint.directory(), ": ", join(parts, "; ")));
}

}  // namespace coppice::io
