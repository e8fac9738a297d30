// Json::parse takes any bytes: it gives a value that survives writing and reading, or Error{kFormat}.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "coppice/base/error.h"
#include "coppice/base/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::Json;
  Json value;
  try {
    value = Json::parse({reinterpret_cast<const char*>(data), size}, "input");
  } catch (const coppice::Error& e) {
    if (e.code != coppice::ErrorCode::kFormat) std::abort();
    return 0;
  }
  for (const int indent : {-1, 2}) {
    const auto text = value.dump(indent);
    const auto again = Json::parse(text, "dump");
    if (again != value || again.dump(indent) != text) std::abort();
  }
  // Passed one after the other, the members are what they are together.
  size_t passed = 0;
  const auto take = [&](std::string_view key, const Json& member) {
    const auto& [wanted_key, wanted] = value.members().at(passed++);
    if (key != wanted_key || member != wanted) std::abort();
  };
  const bool is_object = Json::each_member({reinterpret_cast<const char*>(data), size}, "input", {}, size + 1, take);
  if (is_object != value.is_object() || (is_object && passed != value.members().size())) std::abort();
  return 0;
}
