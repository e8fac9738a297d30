// parse_header takes any bytes: it gives tensors that fill the data section exactly and survive writing and reading, or
// Error{kFormat}.

#include "coppice/io/safetensors_header_detail.h"
#include "fuzz/fuzzed.h"

namespace {

using coppice::fuzz::require;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace io = coppice::io;
  const std::span file(reinterpret_cast<const std::byte*>(data), size);
  io::detail::Header header;
  try {
    header = io::detail::parse_header(file, "input");
  } catch (const coppice::Error& e) {
    require(e.code == coppice::ErrorCode::kFormat);
    return 0;
  }
  uint64_t end = 0;
  for (const auto& t : header.tensors) {
    require(t.offset == end);
    require(static_cast<uint64_t>(t.elements()) * static_cast<uint64_t>(io::dtype_bits(t.dtype)) == 8 * t.bytes);
    end += t.bytes;
  }
  require(header.data_start + end == size);

  auto rewritten = io::lay_out("rewritten", header.tensors, header.metadata).header();
  require(rewritten.size() % 8 == 0);
  rewritten.append(end, '\0');
  const auto again = io::detail::parse_header(std::as_bytes(std::span(rewritten)), "rewritten");
  require(again.tensors == header.tensors && again.metadata == header.metadata);
  return 0;
}
