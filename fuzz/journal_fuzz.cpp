// The journal of a run that was killed: any bytes are a journal up to some line, or none; what is taken for written is
// taken again when the rest is cut off.
#include "coppice/io/journal_detail.h"
#include "fuzz/fuzzed.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::fuzz::require;
  using coppice::io::detail::Journal;
  const auto text = coppice::fuzz::text_of(data, size);
  const auto content = Journal::parse(text);
  if (!content) return 0;
  require(content->valid_bytes <= size && content->part.index >= 1 && content->part.index <= content->part.count);
  const auto again = Journal::parse(text.substr(0, content->valid_bytes));
  require(again && again->done == content->done && again->complete == content->complete);
  require(again->part == content->part && again->valid_bytes == content->valid_bytes);
  return 0;
}
