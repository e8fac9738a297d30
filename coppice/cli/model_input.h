#pragma once

#include <filesystem>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/data/token_file.h"
#include "coppice/data/tokenizer.h"
#include "coppice/families/match.h"
#include "coppice/nn/decoder.h"

namespace coppice::cli {

/// Opens the token files that a model will read.
///
/// Throws   Error{kFormat, kUsage ...}, also if they have a larger vocabulary or were made with another tokenizer.
inline std::vector<data::TokenFile> open_token_files(const families::Model& model,
                                                     std::span<const std::filesystem::path> paths) {
  const std::string digest = data::tokenizer_digest(model.checkpoint.directory());
  std::vector<data::TokenFile> files;
  for (const auto& path : paths) {
    files.push_back(data::TokenFile::open(path));
    files.back().check_vocabulary(model.config.vocab_size, digest);
  }
  return files;
}

/// The option --dtype of commands that run a model. Throws Error{kUsage}.
inline nn::ComputeDtype compute_dtype(std::string_view name) {
  if (name == "f32") return nn::ComputeDtype::kF32;
  if (name == "bf16") return nn::ComputeDtype::kBf16;
  throw Error(ErrorCode::kUsage, cat("dtype: '", name, "'; wanted f32 or bf16"));
}

}  // namespace coppice::cli
