#include <algorithm>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/data/token_index_detail.h"

namespace coppice::data::detail {
namespace {

[[noreturn]] void fail(const std::string& subject, const std::string& rest) {
  throw Error(ErrorCode::kFormat, cat(subject, ": ", rest));
}

TokenType token_type(uint8_t code, const std::string& subject) {
  const auto* found = std::ranges::find(kTokenTypes, code, &TokenType::code);
  if (found == kTokenTypes.end()) {
    fail(subject, cat("dtype code ", int{code}, "; tokens are 1 uint8, 2 int8, 3 int16, 4 int32, 5 int64 or 8 uint16"));
  }
  return *found;
}

}  // namespace

TokenIndex parse_token_index(std::span<const std::byte> index, uint64_t bin_bytes, const std::string& subject) {
  if (index.size() < kIndexHeaderBytes) {
    fail(subject,
         cat("has ", index.size(), " bytes; wanted at least the header, ", kIndexHeaderBytes, " (write it again)"));
  }
  const std::byte* at = index.data();
  if (std::memcmp(at, kIndexMagic.data(), kIndexMagic.size()) != 0) {
    fail(subject,
         "does not start with MMIDIDX, so it is not a Megatron index (give the .bin/.idx pair of a token file)");
  }
  if (const auto version = load<uint64_t>(at + 9); version != kIndexVersion) {
    fail(subject, cat("version ", version, "; wanted ", kIndexVersion));
  }
  TokenIndex out;
  out.type = token_type(load<uint8_t>(at + 17), subject);
  out.sequences = load<uint64_t>(at + 18);
  const auto starts = load<uint64_t>(at + 26);  // documents + 1
  if (starts == 0) fail(subject, "has no document boundary; wanted at least the leading 0");
  out.documents = starts - 1;

  const uint64_t room = index.size() - kIndexHeaderBytes;
  // Divides instead of multiplying, so that hostile counts cannot overflow.
  if (out.sequences > room / 12 || starts > (room - 12 * out.sequences) / 8) {
    fail(subject, cat("announces ", out.sequences, " sequences and ", starts, " document boundaries in ", index.size(),
                      " bytes; the file is incomplete (copy or write it again)"));
  }
  const uint64_t rest = room - 12 * out.sequences - 8 * starts;
  if (rest != 0 && rest != out.sequences) {  // Megatron's multimodal sets append one byte per sequence
    fail(subject, cat(rest, " bytes follow the document boundaries; wanted none"));
  }

  const std::byte* lengths = at + kIndexHeaderBytes;
  out.pointers = lengths + 4 * out.sequences;
  out.document_starts = out.pointers + 8 * out.sequences;
  uint64_t end = 0;
  for (uint64_t i = 0; i < out.sequences; ++i) {
    const auto length = load<int32_t>(lengths + 4 * i);
    if (length < 0) fail(subject, cat("sequence ", i, " has length ", length));
    if (const auto pointer = load<int64_t>(out.pointers + 8 * i); static_cast<uint64_t>(pointer) != end) {
      fail(subject, cat("sequence ", i, " starts at byte ", pointer, "; wanted ", end, ", right after the one before"));
    }
    end += static_cast<uint64_t>(length) * out.type.bytes;
    if (end > bin_bytes) {
      fail(subject, cat("sequence ", i, " ends at byte ", end, " of a .bin of ", bin_bytes,
                        "; the .bin is incomplete (copy or write it again)"));
    }
  }
  if (end != bin_bytes) {
    fail(subject,
         cat("describes ", end, " bytes; the .bin has ", bin_bytes, " (the two files do not belong together)"));
  }
  out.tokens = end / out.type.bytes;

  uint64_t previous = 0;
  for (uint64_t i = 0; i < starts; ++i) {
    const auto start = load<uint64_t>(out.document_starts + 8 * i);
    if (start < previous || start > out.sequences || (i == 0 && start != 0)) {
      fail(subject, cat("document boundary ", i, " is ", static_cast<int64_t>(start), "; wanted ", previous, " to ",
                        out.sequences));
    }
    previous = start;
  }
  if (previous != out.sequences) {
    fail(subject, cat("the last document ends at sequence ", previous, "; wanted ", out.sequences));
  }
  return out;
}

}  // namespace coppice::data::detail
