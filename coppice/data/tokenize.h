#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "coppice/data/text_input.h"
#include "coppice/data/token_file.h"
#include "coppice/data/tokenizer.h"

namespace coppice::data {

/// Writes the token file `prefix` of these documents, each ended by eos. Returns its card.
///
/// Throws   Error{kUsage} if it exists; what the tokenizer throws.
TokenFileCard tokenize_documents(std::span<const std::string> documents, const Tokenizer& tokenizer,
                                 const std::filesystem::path& prefix, std::vector<std::string> sources);

/// The same for the documents of files, with a progress bar. Encoding is parallel; the order is that of the text.
///
/// Memory   a batch of about 16 MiB of text, and each plain file completely.
TokenFileCard tokenize_files(std::span<const std::filesystem::path> files, const TextFormat& format,
                             const Tokenizer& tokenizer, const std::filesystem::path& prefix);

}  // namespace coppice::data
