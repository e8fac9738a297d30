#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "coppice/data/spm_model.h"
#include "coppice/data/tokenizer.h"
#include "coppice/io/model_directory.h"

namespace coppice::data::detail {

/// sentencepiece in this process. `eos_token` empty: the model's own.
std::unique_ptr<Tokenizer> open_spm_tokenizer(const std::filesystem::path& directory, const std::string& bytes,
                                              const SpmModel& model, const std::string& eos_token);

/// PyPI tokenizers in helper processes. `eos_id` is used where `eos_token` is empty; below 0: unknown.
std::unique_ptr<Tokenizer> open_hf_tokenizer(const io::ModelDirectory& files, const std::string& eos_token,
                                             int64_t eos_id);

}  // namespace coppice::data::detail
