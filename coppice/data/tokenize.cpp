#include "coppice/data/tokenize.h"

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/data/text_stream.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

constexpr uint64_t kBatchBytes = 16 << 20;

/// Collects documents, encodes them in batches and writes them.
class Pipeline {
 public:
  Pipeline(const Tokenizer& tokenizer, const fs::path& prefix, uint64_t expected_bytes)
      : tokenizer_(tokenizer),
        writer_(prefix, tokenizer.vocab_size()),
        progress_("tokenize", expected_bytes, ProgressUnit::kBytes) {}

  /// The text must live until the next `flush`.
  void add(std::string_view document) {
    if (document.empty()) return;
    batch_.push_back(document);
    batch_bytes_ += document.size();
  }
  bool full() const { return batch_bytes_ >= kBatchBytes; }

  void flush() {
    check_interrupt();
    for (auto& ids : tokenizer_.encode(batch_)) {
      ids.push_back(tokenizer_.eos_id());
      writer_.add_document(ids);
    }
    card_.documents += batch_.size();
    card_.text_bytes += batch_bytes_;
    progress_.advance(batch_bytes_);
    batch_.clear();
    batch_bytes_ = 0;
  }

  TokenFileCard finish(std::vector<std::string> sources) {
    flush();
    card_.tokenizer_digest = tokenizer_.digest();
    card_.vocab_size = tokenizer_.vocab_size();
    card_.tokens = writer_.num_tokens();
    card_.sources = std::move(sources);
    if (card_.documents == 0)
      throw Error(ErrorCode::kFormat, "the text has no documents, or only empty ones (give some text)");
    writer_.finish(card_);
    return card_;
  }

 private:
  const Tokenizer& tokenizer_;
  TokenFileWriter writer_;
  Progress progress_;
  TokenFileCard card_;
  std::vector<std::string_view> batch_;
  uint64_t batch_bytes_ = 0;
};

}  // namespace

TokenFileCard tokenize_documents(std::span<const std::string> documents, const Tokenizer& tokenizer,
                                 const fs::path& prefix, std::vector<std::string> sources) {
  uint64_t bytes = 0;
  for (const auto& document : documents) bytes += document.size();
  Pipeline pipeline(tokenizer, prefix, bytes);
  for (const auto& document : documents) {
    pipeline.add(document);
    if (pipeline.full()) pipeline.flush();
  }
  return pipeline.finish(std::move(sources));
}

TokenFileCard tokenize_files(std::span<const fs::path> files, const TextFormat& format, const Tokenizer& tokenizer,
                             const fs::path& prefix) {
  uint64_t bytes = 0;
  for (const auto& file : files) bytes += text_bytes(file);
  Pipeline pipeline(tokenizer, prefix, bytes);
  std::vector<std::string> held, sources;
  uint64_t held_bytes = 0;
  const auto pass_on = [&] {
    for (const auto& document : held) pipeline.add(document);
    pipeline.flush();
    held.clear();
    held_bytes = 0;
  };
  for (const auto& file : files) {
    read_documents(file, format, [&](std::string&& document) {
      held_bytes += document.size();
      held.push_back(std::move(document));
      if (held_bytes >= kBatchBytes) pass_on();
    });
    sources.push_back(file.string());
  }
  pass_on();
  return pipeline.finish(std::move(sources));
}

}  // namespace coppice::data
