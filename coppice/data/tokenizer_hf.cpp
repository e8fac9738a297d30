#include <mutex>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/data/tokenizer_detail.h"
#include "coppice/data/tokenizer_helper.h"
#include "coppice/data/utf8.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

constexpr const char* kFile = "tokenizer.json";
constexpr uint64_t kBatchBytes = 1 << 20;

class HfTokenizer final : public Tokenizer {
 public:
  HfTokenizer(const io::ModelDirectory& files, const std::string& eos_token, int64_t eos_id)
      : python_(tokenizers_python()), files_(files), eos_token_(eos_token), digest_(files.sha256(kFile)) {
    auto first = start();
    vocab_size_ = first->vocab_size();
    if (!eos_token.empty()) eos_id = first->eos_id();
    if (eos_id < 0 || eos_id >= vocab_size_) {
      throw Error(ErrorCode::kFormat, cat(files.path(), ": has no end-of-text token",
                                          eos_token.empty() ? "" : cat(" '", eos_token, "' in tokenizer.json"),
                                          ", with which documents must end (set eos_token in tokenizer_config.json)"));
    }
    eos_id_ = static_cast<int32_t>(eos_id);
    idle_.push_back(std::move(first));
  }

  int64_t vocab_size() const override { return vocab_size_; }
  int32_t eos_id() const override { return eos_id_; }
  std::string digest() const override { return digest_; }

  std::vector<std::vector<int32_t>> encode(std::span<const std::string_view> documents) const override {
    std::vector<std::pair<size_t, size_t>> batches;  // [begin, end)
    uint64_t bytes = kBatchBytes;
    for (size_t i = 0; i < documents.size(); ++i) {
      if (const auto bad = find_invalid_utf8(documents[i])) {
        throw Error(ErrorCode::kFormat, cat("document ", i, ": byte ", *bad, " is not UTF-8"));
      }
      if (bytes >= kBatchBytes) {
        batches.emplace_back(i, i);
        bytes = 0;
      }
      bytes += documents[i].size();
      batches.back().second = i + 1;
    }
    std::vector<std::vector<int32_t>> out(documents.size());
    parallel_for(batches.size(), default_threads(), [&](size_t b) {
      const auto [begin, end] = batches[b];
      auto helper = acquire();
      auto ids = helper->encode(documents.subspan(begin, end - begin));
      for (size_t i = begin; i < end; ++i) out[i] = std::move(ids[i - begin]);
      const std::scoped_lock lock(mutex_);
      idle_.push_back(std::move(helper));
    });
    return out;
  }

 private:
  std::unique_ptr<TokenizerHelper> start() const {
    return std::make_unique<TokenizerHelper>(python_, files_.open(kFile), files_.path() / kFile, eos_token_);
  }

  /// An idle helper, or a new one; there are at most as many helpers as encoding threads.
  std::unique_ptr<TokenizerHelper> acquire() const {
    {
      const std::scoped_lock lock(mutex_);
      if (!idle_.empty()) {
        auto out = std::move(idle_.back());
        idle_.pop_back();
        return out;
      }
    }
    return start();
  }

  fs::path python_;
  io::ModelDirectory files_;
  std::string eos_token_, digest_;
  int64_t vocab_size_ = 0;
  int32_t eos_id_ = -1;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<TokenizerHelper>> idle_;
};

}  // namespace

std::unique_ptr<Tokenizer> detail::open_hf_tokenizer(const io::ModelDirectory& files, const std::string& eos_token,
                                                     int64_t eos_id) {
  return std::make_unique<HfTokenizer>(files, eos_token, eos_id);
}

}  // namespace coppice::data
