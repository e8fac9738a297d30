#include "coppice/data/random_tokens.h"

#include <cstdlib>
#include <filesystem>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"

namespace coppice::data {
namespace {

namespace fs = std::filesystem;

/// A folder that goes again; what is mapped from it stays.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (fs::temp_directory_path() / "coppice-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) {
      throw Error(ErrorCode::kIo, cat(name, ": cannot be made (set TMPDIR to a folder that can be written)"));
    }
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

}  // namespace

TokenFile random_tokens(uint64_t count, int64_t vocab_size, uint64_t seed) {
  const Rng rng({.seed = seed});
  std::vector<int32_t> ids(count);
  for (uint64_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(vocab_size)));
  }
  const TemporaryFolder folder;
  TokenFileWriter writer(folder.path() / "random", vocab_size);
  writer.add_document(ids);
  writer.finish({});
  return TokenFile::open(folder.path() / "random");
}

}  // namespace coppice::data
