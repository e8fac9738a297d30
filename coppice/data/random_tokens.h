#pragma once

#include <cstdint>

#include "coppice/data/token_file.h"

namespace coppice::data {

/// One document of uniformly random ids, for measurements; no file remains after the process.
///
/// Throws   Error{kIo} if the folder for temporary files cannot be written.
TokenFile random_tokens(uint64_t count, int64_t vocab_size, uint64_t seed);

}  // namespace coppice::data
