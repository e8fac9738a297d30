#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

namespace coppice::data::detail {

// The file layout, shared by reader and writer of token files.
inline constexpr std::string_view kIndexMagic{"MMIDIDX\0\0", 9};
inline constexpr uint64_t kIndexVersion = 1;
inline constexpr size_t kIndexHeaderBytes = 9 + 8 + 1 + 8 + 8;
inline constexpr int64_t kMaxVocabU16 = 65500;

/// Element types by Megatron's code; 6 and 7 are floating point and not used for tokens.
struct TokenType {
  uint8_t code;
  uint8_t bytes;
  bool is_signed;
  std::string_view name;
};
inline constexpr std::array<TokenType, 6> kTokenTypes{{{1, 1, false, "uint8"},
                                                       {2, 1, true, "int8"},
                                                       {3, 2, true, "int16"},
                                                       {4, 4, true, "int32"},
                                                       {5, 8, true, "int64"},
                                                       {8, 2, false, "uint16"}}};

/// A little-endian value at a byte offset that need not be aligned.
template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

/// The arrays of a checked .idx.
struct TokenIndex {
  TokenType type{};
  uint64_t sequences = 0, documents = 0, tokens = 0;
  const std::byte* pointers = nullptr;         // i64 [sequences], bytes into the .bin
  const std::byte* document_starts = nullptr;  // i64 [documents + 1], sequences

  /// First token of a sequence; `sequences` gives the end of the data.
  uint64_t sequence_begin(uint64_t sequence) const {
    return sequence == sequences ? tokens : load<uint64_t>(pointers + 8 * sequence) / type.bytes;
  }
  uint64_t document_begin(uint64_t document) const {
    return sequence_begin(load<uint64_t>(document_starts + 8 * document));
  }
};

/// Checks every count, length and pointer against both files.
///
/// Throws   Error{kFormat} naming `subject`.
TokenIndex parse_token_index(std::span<const std::byte> index, uint64_t bin_bytes, const std::string& subject);

}  // namespace coppice::data::detail
