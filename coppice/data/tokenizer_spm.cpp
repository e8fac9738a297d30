#include <sentencepiece_processor.h>

#include <algorithm>
#include <array>
#include <bitset>
#include <unordered_map>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/data/tokenizer_detail.h"
#include "coppice/data/utf8.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

/// For each pair of ASCII characters, whether some piece contains them side by side.
using Neighbours = std::array<std::bitset<128>, 128>;

void add_neighbours(std::string_view piece, Neighbours& joined) {
  std::string text;  // with spaces instead of the piece's space marks
  while (!piece.empty()) {
    const bool space = piece.starts_with(kSpaceMark);
    text += space ? ' ' : piece.front();
    piece.remove_prefix(space ? kSpaceMark.size() : 1);
  }
  for (size_t i = 1; i < text.size(); ++i) {
    const auto left = static_cast<unsigned char>(text[i - 1]), right = static_cast<unsigned char>(text[i]);
    if (left < 0x80 && right < 0x80) joined[left][right] = true;
  }
}

class SpmTokenizer final : public Tokenizer {
 public:
  SpmTokenizer(const fs::path& directory, const std::string& bytes, const SpmModel& model, const std::string& eos_token)
      : digest_(tokenizer_digest(directory)) {
    if (const auto status = processor_.LoadFromSerializedProto(bytes); !status.ok()) {
      throw Error(ErrorCode::kFormat, cat(directory / "tokenizer.model", ": ", status.ToString(), " (copy it again)"));
    }
    for (size_t i = 0; i < model.pieces.size(); ++i) {
      const auto& piece = model.pieces[i];
      if (piece.kind == SpmModel::Kind::kNormal) add_neighbours(piece.text, joined_);
      if (piece.kind == SpmModel::Kind::kControl || piece.kind == SpmModel::Kind::kUnknown) {
        specials_.emplace_back(piece.text, static_cast<int32_t>(i));
      }
    }
    eos_id_ = eos_token.empty() ? processor_.eos_id() : processor_.PieceToId(eos_token);
    if (eos_id_ < 0 || (!eos_token.empty() && processor_.IdToPiece(eos_id_) != eos_token)) {
      throw Error(ErrorCode::kFormat, cat(directory, ": end-of-text token '", eos_token,
                                          "' is not in tokenizer.model (set eos_token in tokenizer_config.json)"));
    }
  }

  int64_t vocab_size() const override { return processor_.GetPieceSize(); }
  int32_t eos_id() const override { return eos_id_; }
  std::string digest() const override { return digest_; }

  std::vector<std::vector<int32_t>> encode(std::span<const std::string_view> documents) const override {
    std::vector<std::vector<int32_t>> out(documents.size());
    const auto groups = group_documents(documents);
    parallel_for(groups.size(), default_threads(), [&](size_t g) {
      WordMemory memory;
      for (size_t i = groups[g].first; i < groups[g].second; ++i) {
        if (const auto bad = find_invalid_utf8(documents[i])) {
          throw Error(ErrorCode::kFormat, cat("document ", i, ": byte ", *bad, " is not UTF-8"));
        }
        encode_document(documents[i], memory, out[i]);
      }
    });
    return out;
  }

 private:
  using WordMemory = std::unordered_map<std::string_view, std::vector<int>>;

  /// [begin, end) of documents that make about a megabyte, enough to see most words again.
  static std::vector<std::pair<size_t, size_t>> group_documents(std::span<const std::string_view> documents) {
    constexpr uint64_t kGroupBytes = 1 << 20;
    std::vector<std::pair<size_t, size_t>> groups;
    uint64_t bytes = kGroupBytes;
    for (size_t i = 0; i < documents.size(); ++i) {
      if (bytes >= kGroupBytes) {
        groups.emplace_back(i, i);
        bytes = 0;
      }
      bytes += documents[i].size();
      groups.back().second = i + 1;
    }
    return groups;
  }

  void encode_document(std::string_view text, WordMemory& memory, std::vector<int32_t>& ids) const {
    while (!text.empty()) {
      const auto [begin, bytes, special] = next_special(text);
      for (std::string_view rest = text.substr(0, begin); !rest.empty();) {
        const auto word = rest.substr(0, word_bytes(rest));
        encode_word(word, memory, ids);
        rest.remove_prefix(word.size());
      }
      if (special >= 0) ids.push_back(special);
      text.remove_prefix(begin + bytes);
    }
  }

  void encode_word(std::string_view word, WordMemory& memory, std::vector<int32_t>& ids) const {
    constexpr size_t kMaxWordBytes = 64, kMaxWords = 1 << 16;
    if (const auto known = memory.find(word); known != memory.end()) {
      ids.insert(ids.end(), known->second.begin(), known->second.end());
      return;
    }
    std::vector<int> part;
    if (const auto status = processor_.Encode({word.data(), word.size()}, &part); !status.ok()) {
      throw Error(ErrorCode::kInternal, cat("sentencepiece: ", status.ToString()));
    }
    ids.insert(ids.end(), part.begin(), part.end());
    if (word.size() <= kMaxWordBytes && memory.size() < kMaxWords) memory.emplace(word, std::move(part));
  }

  /// The length up to the next two characters that no piece contains side by side. No merge can cross that place, so
  /// the parts can be encoded separately and cached.
  size_t word_bytes(std::string_view text) const {
    for (size_t i = 1; i < text.size(); ++i) {
      const auto left = static_cast<unsigned char>(text[i - 1]), right = static_cast<unsigned char>(text[i]);
      if (left < 0x80 && right < 0x80 && !joined_[left][right]) return i;
    }
    return text.size();
  }

  struct Special {
    size_t begin, bytes;
    int32_t id;
  };
  /// The first special token in `text`, the longest if several start there; the end of `text` if there is none.
  Special next_special(std::string_view text) const {
    Special found{text.size(), 0, -1};
    for (const auto& [content, id] : specials_) {
      const size_t at = text.substr(0, std::min(text.size(), found.begin + content.size())).find(content);
      if (at == text.npos || at > found.begin || (at == found.begin && content.size() <= found.bytes)) continue;
      found = {at, content.size(), id};
    }
    return found;
  }

  sentencepiece::SentencePieceProcessor processor_;
  std::vector<std::pair<std::string, int32_t>> specials_;
  int32_t eos_id_ = -1;
  Neighbours joined_;
  std::string digest_;
};

}  // namespace

std::unique_ptr<Tokenizer> detail::open_spm_tokenizer(const fs::path& directory, const std::string& bytes,
                                                      const SpmModel& model, const std::string& eos_token) {
  return std::make_unique<SpmTokenizer>(directory, bytes, model, eos_token);
}

}  // namespace coppice::data
