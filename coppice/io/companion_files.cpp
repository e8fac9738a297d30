#include <algorithm>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/checkpoint.h"
#include "coppice/io/paths_detail.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

struct NamePattern {
  std::string_view prefix, suffix;
  bool matches(std::string_view name) const {
    return name.size() >= prefix.size() + suffix.size() && name.starts_with(prefix) && name.ends_with(suffix);
  }
};

// What is written anew beside the weights of the top level.
constexpr std::string_view kOwnFiles[] = {"config.json", "coppice.json"};
constexpr NamePattern kOwnWeights[] = {{"", ".safetensors"}, {"", ".safetensors.index.json"}};

// The same weights in formats that coppice does not write: in a copy of a changed model they would be stale.
constexpr NamePattern kOtherWeights[] = {{"pytorch_model", ".bin"}, {"pytorch_model", ".bin.index.json"},
                                         {"tf_model", ".h5"},       {"flax_model", ".msgpack"},
                                         {"consolidated", ".pth"},  {"", ".gguf"}};

bool any_matches(std::span<const NamePattern> patterns, std::string_view name) {
  return std::ranges::any_of(patterns, [&](const NamePattern& p) { return p.matches(name); });
}

}  // namespace

std::vector<fs::path> Checkpoint::companion_files() const {
  std::set<fs::path> weights;
  for (const auto& shard : shards_) weights.insert(shard.path().lexically_relative(directory_));
  std::vector<fs::path> out;
  try {
    for (auto it = fs::recursive_directory_iterator(directory_); it != fs::recursive_directory_iterator(); ++it) {
      const auto relative = it->path().lexically_relative(directory_);
      const auto name = relative.filename().string();
      if (it->is_directory() && !it->is_symlink()) {
        if (name.starts_with('.') || relative == "trainer") it.disable_recursion_pending();
        continue;
      }
      if (weights.contains(relative) || any_matches(kOtherWeights, name)) continue;
      if (it.depth() == 0 && (any_matches(kOwnWeights, name) || std::ranges::count(kOwnFiles, name) > 0)) continue;
      if (!fs::is_regular_file(detail::resolve_inside(directory_, relative))) {
        throw Error(
            ErrorCode::kFormat,
            cat(it->path(), ": no file, or a link to none; wanted regular files beside the weights (remove it)"));
      }
      out.push_back(relative);
    }
  } catch (const fs::filesystem_error& e) {
    detail::throw_io(directory_.string(), "list it", e.code().value());
  }
  std::ranges::sort(out);
  return out;
}

}  // namespace coppice::io
