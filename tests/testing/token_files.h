#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "coppice/base/rng.h"
#include "coppice/data/token_file.h"

namespace coppice::testing {

/// Writes a token file of documents in which each token is drawn from four followers of the one before: something to
/// learn.
inline std::filesystem::path write_tokens(const std::filesystem::path& prefix, int64_t vocab_size, uint64_t documents,
                                          uint64_t length, uint64_t seed = 1) {
  data::TokenFileWriter writer(prefix, vocab_size);
  const Rng rng({.seed = seed});
  uint64_t drawn = 0;
  for (uint64_t d = 0; d < documents; ++d) {
    std::vector<int32_t> ids{static_cast<int32_t>(rng.below(drawn++, static_cast<uint64_t>(vocab_size)))};
    while (ids.size() < length) {
      const auto next =
          (static_cast<uint64_t>(ids.back()) * 7 + rng.below(drawn++, 4)) % static_cast<uint64_t>(vocab_size);
      ids.push_back(static_cast<int32_t>(next));
    }
    writer.add_document(ids);
  }
  writer.finish({});
  return prefix;
}

}  // namespace coppice::testing
