#include "coppice/data/random_tokens.h"

#include <filesystem>
#include <vector>

#include "coppice/base/rng.h"
#include "coppice/data/scratch_directory.h"

namespace coppice::data {
namespace fs = std::filesystem;

TokenFile random_tokens(uint64_t count, int64_t vocab_size, uint64_t seed) {
  const Rng rng({.seed = seed});
  std::vector<int32_t> ids(count);
  for (uint64_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>(rng.below(i, static_cast<uint64_t>(vocab_size)));
  }
  const ScratchDirectory folder(fs::temp_directory_path() /
                                "coppice-");  // mapped files stay readable after it is removed
  TokenFileWriter writer(folder.path() / "random", vocab_size);
  writer.add_document(ids);
  writer.finish({});
  return TokenFile::open(folder.path() / "random");
}

}  // namespace coppice::data
