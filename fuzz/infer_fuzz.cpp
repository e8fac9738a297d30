// infer takes any configuration and any names and shapes: it gives a family file that can be read again, or a refusal.
// Input: {"config": {...}, "tensors": {"NAME": ["F32", 8, 4], ...}}.
#include <algorithm>

#include "coppice/base/toml.h"
#include "coppice/families/family_file.h"
#include "coppice/infer/infer.h"
#include "fuzz/fuzzed.h"

namespace {

using coppice::Error;
using coppice::ErrorCode;
using coppice::Json;
using coppice::fuzz::require;
using coppice::fuzz::require_refusal;
namespace io = coppice::io;

std::vector<io::TensorInfo> tensors_of(const Json& json) {
  std::vector<io::TensorInfo> out;
  if (!json.is_object()) return out;
  for (const auto& [name, row] : json.members()) {
    if (!row.is_array() || row.items().empty() || !row.items().front().is_string()) continue;
    io::TensorInfo info{.name = name};
    info.dtype = row.items().front().as_string() == "I64" ? io::Dtype::kI64 : io::Dtype::kF32;
    std::vector<int64_t> shape;
    for (size_t i = 1; i < row.items().size(); ++i) {
      const Json& size = row.items()[i];
      if (size.kind() == Json::Kind::kInt && size.as_int() >= 0 && size.as_int() < 1 << 20)
        shape.push_back(size.as_int());
    }
    info.shape = shape;
    out.push_back(std::move(info));
  }
  std::ranges::sort(out, {}, &io::TensorInfo::name);
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Json input;
  try {
    input = Json::parse(coppice::fuzz::text_of(data, size), "input");
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kFormat});
    return 0;
  }
  const Json *config = input.find("config"), *tensors = input.find("tensors");
  if (config == nullptr || tensors == nullptr) return 0;
  const std::vector<io::TensorInfo> infos = tensors_of(*tensors);
  std::vector<const io::TensorInfo*> pointers;
  for (const io::TensorInfo& info : infos) pointers.push_back(&info);
  try {
    const auto found = coppice::infer::infer(*config, pointers);
    require(!found.tensors.empty() && found.count.experts >= 2);
    const auto file = coppice::families::FamilyFile::from_json(found.to_json(), "inferred");
    const auto again =
        coppice::families::FamilyFile::from_json(coppice::parse_toml(found.to_toml(), "inferred"), "inferred");
    require(file.family().tensors.size() == again.family().tensors.size());
  } catch (const Error& e) {
    require_refusal(e, {ErrorCode::kUnsupported, ErrorCode::kFormat});
  }
  return 0;
}
