#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/file.h"
#include "coppice/data/subprocess.h"

namespace coppice::data {

/// A Python process that runs PyPI tokenizers on one tokenizer.json; text goes in and ids come out over a socket pair.
///
/// Threads  one caller at a time.
class TokenizerHelper {
 public:
  /// `file` is the open tokenizer.json, `name` its name in messages.
  /// Throws   Error{kIo}: no Python, or one without `tokenizers` (says how to get one); Error{kFormat}: a
  ///          tokenizer.json that PyPI tokenizers cannot read; Error{kInterrupted}.
  TokenizerHelper(const std::filesystem::path& python, const Descriptor& file, const std::filesystem::path& name,
                  const std::string& eos_token);

  int64_t vocab_size() const { return vocab_size_; }
  int64_t eos_id() const { return eos_id_; }  ///< -1: the token is not in the vocabulary
  /// Throws   Error{kIo} if the process ended, Error{kFormat} with its own message if it refused the text.
  std::vector<std::vector<int32_t>> encode(std::span<const std::string_view> documents);

 private:
  struct Message {
    char kind;
    std::string payload;
  };
  void send(std::string_view bytes);
  void receive(void* data, size_t bytes);
  Message receive_message();

  std::filesystem::path python_, tokenizer_json_;
  std::optional<Subprocess> process_;
  Descriptor channel_;  // at the end of its input the process exits
  int64_t vocab_size_ = 0, eos_id_ = -1;
};

/// $COPPICE_PYTHON, else the newest virtual environment of ours that has `tokenizers`, under
/// ${COPPICE_CACHE:-~/.cache/coppice}.
///
/// Throws   Error{kIo} saying how to get one.
std::filesystem::path tokenizers_python();

}  // namespace coppice::data
