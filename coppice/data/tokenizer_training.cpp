#include <sentencepiece_trainer.h>

#include <algorithm>
#include <functional>

#include "coppice/base/error.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"
#include "coppice/data/spm_model.h"
#include "coppice/data/tokenizer.h"
#include "coppice/data/utf8.h"
#include "coppice/io/atomic_file.h"

namespace coppice::data {
namespace fs = std::filesystem;
namespace {

constexpr uint32_t kTrainingPurpose = 0x70;

/// Gives the trainer the parts as strings.
class PieceIterator final : public sentencepiece::SentenceIterator {
 public:
  explicit PieceIterator(const std::vector<std::string_view>& parts) : parts_(parts) { load(); }
  bool done() const override { return next_ >= parts_.size(); }
  void Next() override {
    ++next_;
    load();
  }
  const std::string& value() const override { return value_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  void load() {
    if (!done()) value_ = parts_[next_];
  }
  const std::vector<std::string_view>& parts_;
  size_t next_ = 0;
  std::string value_;
};

/// Cuts documents before a space or after a newline where there is one in the second half, newlines kept, so that they
/// are learned.
std::vector<std::string_view> training_parts(std::span<const std::string> documents, uint64_t max_bytes) {
  std::vector<std::string_view> parts;
  for (std::string_view text : documents) {
    while (text.size() > max_bytes) {
      const auto window = text.substr(0, max_bytes);
      const size_t newline = window.rfind('\n'), space = window.rfind(' ');
      size_t cut = character_boundary(text, max_bytes);
      if (newline != window.npos && newline + 1 > max_bytes / 2)
        cut = newline + 1;
      else if (space != window.npos && space > max_bytes / 2)
        cut = space;
      parts.push_back(text.substr(0, cut));
      text.remove_prefix(cut);
    }
    if (!text.empty()) parts.push_back(text);
  }
  return parts;
}

/// A random part of about `bytes`, in the order given.
void thin_out(std::vector<std::string_view>& parts, uint64_t bytes, uint64_t seed) {
  uint64_t total = 0;
  for (const auto part : parts) total += part.size();
  if (total <= bytes) return;
  const Rng rng({.seed = seed, .purpose = kTrainingPurpose});
  const double share = static_cast<double>(bytes) / static_cast<double>(total);
  size_t i = 0;
  std::erase_if(parts, [&](std::string_view) { return rng.uniform(i++) >= share; });
}

struct Character {
  uint32_t point;
  size_t bytes;
};
/// The first character of well-formed UTF-8.
Character first_character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text.front());
  if (lead < 0x80) return {lead, 1};
  const size_t bytes = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  uint32_t point = lead & (0xffu >> (bytes + 1));
  for (size_t i = 1; i < bytes; ++i) point = point << 6 | (static_cast<unsigned char>(text[i]) & 0x3fu);
  return {point, bytes};
}

/// Cuts rare characters out, so that they take no place in the vocabulary: byte fallback spells them. Kept are the
/// commonest that make up nearly all of the text, at most half a vocabulary of them.
void cut_out_rare_characters(std::vector<std::string_view>& parts, int64_t vocab_size) {
  constexpr uint64_t kRareInTenThousand = 5;
  constexpr int64_t kFixedPieces = 256 + 3;
  constexpr size_t kPoints = 0x110000;
  std::vector<uint64_t> counts(kPoints);
  uint64_t total = 0;
  for (auto part : parts) {
    for (; !part.empty(); ++total) {
      const auto [point, bytes] = first_character(part);
      ++counts[point];
      part.remove_prefix(bytes);
    }
  }
  std::vector<uint32_t> by_count;
  for (uint32_t point = 0; point < kPoints; ++point) {
    if (counts[point] > 0) by_count.push_back(point);
  }
  std::ranges::stable_sort(by_count, std::greater{}, [&](uint32_t point) { return counts[point]; });
  const auto most = static_cast<size_t>(std::max<int64_t>(1, (vocab_size - kFixedPieces) / 2));
  std::vector<bool> kept(kPoints);
  uint64_t covered = 0;
  for (size_t i = 0; i < std::min(most, by_count.size()); ++i) {
    if ((total - covered) * 10000 <= kRareInTenThousand * total) break;
    kept[by_count[i]] = true;
    covered += counts[by_count[i]];
  }

  std::vector<std::string_view> out;
  for (auto part : parts) {
    for (size_t at = 0; at < part.size();) {
      const auto [point, bytes] = first_character(part.substr(at));
      if (kept[point]) {
        at += bytes;
        continue;
      }
      if (at > 0) out.push_back(part.substr(0, at));
      part.remove_prefix(at + bytes);
      at = 0;
    }
    if (!part.empty()) out.push_back(part);
  }
  parts = std::move(out);
}

std::string train_model(const std::vector<std::string_view>& parts, const TokenizerTraining& settings) {
  PieceIterator iterator(parts);
  std::string model;
  const auto status =
      sentencepiece::SentencePieceTrainer::Train({{"model_type", "bpe"},
                                                  {"vocab_size", cat(settings.vocab_size)},
                                                  {"byte_fallback", "true"},
                                                  {"normalization_rule_name", "identity"},
                                                  {"remove_extra_whitespaces", "false"},
                                                  {"add_dummy_prefix", "false"},
                                                  {"split_digits", "true"},
                                                  {"allow_whitespace_only_pieces", "true"},
                                                  {"character_coverage", "1.0"},
                                                  {"max_sentence_length", cat(settings.max_sentence_bytes)},
                                                  {"unk_id", "0"},
                                                  {"bos_id", "1"},
                                                  {"eos_id", "2"},
                                                  {"pad_id", "-1"},
                                                  {"minloglevel", "2"}},
                                                 &iterator, &model);
  if (!status.ok()) {
    throw Error(ErrorCode::kUsage, cat("tokenizer with ", settings.vocab_size, " ids: cannot be trained on this text: ",
                                       status.ToString(), " (choose another vocabulary size or give more text)"));
  }
  return model;
}

Json tokenizer_config() {
  return Json::object({{"tokenizer_class", Json("PreTrainedTokenizerFast")},
                       {"add_bos_token", Json(false)},
                       {"add_eos_token", Json(false)},
                       {"add_prefix_space", Json(false)},
                       {"legacy", Json(false)},
                       {"clean_up_tokenization_spaces", Json(false)},
                       {"unk_token", Json("<unk>")},
                       {"bos_token", Json("<s>")},
                       {"eos_token", Json("</s>")}});
}

}  // namespace

void train_tokenizer(std::span<const std::string> documents, const TokenizerTraining& settings,
                     const fs::path& directory) {
  if (fs::exists(directory / "tokenizer.model") || fs::exists(directory / "tokenizer.json")) {
    throw Error(ErrorCode::kUsage, cat(directory, ": has a tokenizer already (choose another directory or remove it)"));
  }
  if (settings.max_sentence_bytes < 16)
    throw Error(ErrorCode::kUsage, cat("sentences of ", settings.max_sentence_bytes, " bytes; wanted at least 16"));
  for (size_t i = 0; i < documents.size(); ++i) {
    if (const auto bad = find_invalid_utf8(documents[i])) {
      throw Error(ErrorCode::kFormat, cat("document ", i, ": byte ", *bad, " is not UTF-8"));
    }
  }
  auto parts = training_parts(documents, settings.max_sentence_bytes);
  thin_out(parts, settings.sample_bytes, settings.seed);
  cut_out_rare_characters(parts, settings.vocab_size);
  if (parts.empty()) throw Error(ErrorCode::kUsage, "tokenizer: there is no text to train it on (give some text)");

  const std::string bytes = train_model(parts, settings);
  const SpmModel model = SpmModel::parse(bytes, "the trained tokenizer");
  Json specials = Json::object({{"unk_token", Json("<unk>")}, {"bos_token", Json("<s>")}, {"eos_token", Json("</s>")}});
  fs::create_directories(directory);
  io::write_file_atomically(directory / "tokenizer_config.json", tokenizer_config().dump(2) + "\n");
  io::write_file_atomically(directory / "special_tokens_map.json", specials.dump(2) + "\n");
  io::write_file_atomically(directory / "tokenizer.model", bytes);
  io::write_file_atomically(directory / "tokenizer.json", spm_to_tokenizer_json(model).dump(2) + "\n");
}

}  // namespace coppice::data
