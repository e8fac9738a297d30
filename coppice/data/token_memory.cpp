#include <string>

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/data/token_memory_detail.h"
#include "coppice/io/atomic_file.h"

namespace coppice::data::detail {
namespace fs = std::filesystem;
namespace {

fs::path memory_of(const fs::path& prefix) { return prefix.string() + ".checked.json"; }

Json stamp_of(const fs::path& prefix) {
  const fs::path bin = prefix.string() + ".bin";
  const FileState state = state_of(open_to_read(bin), bin);
  Json out = Json::object();
  out["coppice_checked"] = 1;
  out["bytes"] = static_cast<int64_t>(state.bytes);
  out["modified_ns"] = state.modified_ns;
  return out;
}

}  // namespace

Json known_of(const fs::path& prefix) {
  Json stamp = stamp_of(prefix);
  const fs::path memory = memory_of(prefix);
  if (!fs::exists(memory)) return stamp;
  try {
    const Json remembered = Json::read(memory);
    for (const char* key : {"bytes", "modified_ns"}) {
      if (remembered.at(key) != stamp.at(key)) return stamp;
    }
    Json known = stamp;
    for (const char* key : {kLeastId, kGreatestId}) {
      if (const Json* id = remembered.find(key)) known[key] = id->as_int();
    }
    if (const Json* digest = remembered.find(kSha256)) known[kSha256] = digest->as_string();
    return known;
  } catch (const Error&) {
    log_warning(cat(memory, ": cannot be read, so the whole .bin is checked again"));
    return stamp;
  }
}

void remember(const fs::path& prefix, const Json& known) {
  try {
    io::write_file_atomically(memory_of(prefix), known.dump(2) + "\n");
  } catch (const Error& error) {  // a read-only data set works too, but is checked each time
    log_warning(cat(prefix, ": the result of its check could not be saved: ", error.what()));
  }
}

}  // namespace coppice::data::detail
