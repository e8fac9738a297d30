#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"

namespace coppice::data {

/// U+2581, which stands for a space in pieces.
inline constexpr std::string_view kSpaceMark = "\xe2\x96\x81";

/// The contents of a serialized sentencepiece model.
///
/// Source   sentencepiece_model.proto; parsed here, because libprotobuf and libsentencepiece linked together crash the
///          process.
struct SpmModel {
  enum class Kind { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
  struct Piece {
    std::string text;
    float score = 0;
    Kind kind = Kind::kNormal;
  };
  std::vector<Piece> pieces;
  bool is_bpe = false, byte_fallback = false, whitespace_as_suffix = false;
  std::string normalization;  ///< name of the rule
  bool has_character_map = false, add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;

  /// Throws   Error{kFormat} naming `source`.
  static SpmModel parse(std::string_view bytes, std::string_view source);
};

/// Why transformers would give other ids than sentencepiece does with this model; empty if the ids agree.
std::string spm_disagreement(const SpmModel& model);

/// The model as a tokenizer.json of PyPI tokenizers: BPE with byte fallback, no pre-tokenizer, merges in score order.
///
/// Source   transformers' SentencePieceExtractor for the order of merges that give the same piece.
Json spm_to_tokenizer_json(const SpmModel& model);

}  // namespace coppice::data
