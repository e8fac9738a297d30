// parse_shard_index takes any text: it gives files that lie inside the model's directory, or Error{kFormat}.
#include <algorithm>
#include <filesystem>

#include "coppice/io/shard_index_detail.h"
#include "fuzz/fuzzed.h"

namespace {

using coppice::fuzz::require;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace fs = std::filesystem;
  coppice::io::detail::WeightMap map;
  try {
    map = coppice::io::detail::parse_shard_index({reinterpret_cast<const char*>(data), size}, "input");
  } catch (const coppice::Error& e) {
    require(e.code == coppice::ErrorCode::kFormat);
    return 0;
  }
  const fs::path root = "/models/one";
  for (const std::string& file : map.files) {
    require(file.find('\0') == std::string::npos);  // where the system's name would end
    const auto path = (root / file).lexically_normal();
    require(std::ranges::mismatch(root, path).in1 == root.end());
  }
  return 0;
}
