#include "coppice/upcycle/verify_detail.h"

#include <algorithm>
#include <set>

#include "coppice/base/text.h"
#include "coppice/upcycle/output_units.h"

namespace coppice::upcycle::detail {
namespace {

/// Reads by pread: pages of the file that were compared are not kept.
bool same_bytes(const OutputTensor& wanted, const io::Checkpoint::Entry& found) {
  std::vector<std::byte> made, stored;
  uint64_t offset = found.info->offset;
  for (const OutputPiece& piece : wanted.pieces) {
    const bool cuttable = piece.cuttable || piece.file != nullptr;
    const uint64_t step = cuttable ? OutputPlan::kWindowBytes : piece.bytes;
    bool same = true;
    for (uint64_t done = 0; done < piece.bytes; done += step) {  // all of it: what is prepared for it is let go then
      made.resize(std::min(step, piece.bytes - done));
      stored.resize(made.size());
      piece.fill(done, made);
      found.file->read(offset + done, stored);
      same = same && made == stored;
    }
    if (!same) return false;
    offset += piece.bytes;
  }
  return true;
}

}  // namespace

void compare_objects(const Json& wanted, const Json& found, const std::string& inside,
                     std::vector<std::string>& problems) {
  std::set<std::string> keys;
  for (const auto& [key, value] : wanted.members()) keys.insert(key);
  for (const auto& [key, value] : found.members()) keys.insert(key);
  for (const std::string& key : keys) {
    const Json *was = wanted.find(key), *is = found.find(key);
    if (was != nullptr && is != nullptr && *was == *is) continue;
    if (was != nullptr && is != nullptr && was->is_object() && is->is_object()) {
      compare_objects(*was, *is, cat(inside, key, "."), problems);
      continue;
    }
    problems.push_back(cat("config.json: '", inside, key, "' is ", is != nullptr ? is->dump() : "absent", " and was ",
                           was != nullptr ? was->dump() : "absent"));
  }
}

std::string difference(const OutputTensor& wanted, const families::Model& after, std::string_view maker) {
  const std::string& name = wanted.info.name;
  if (!after.checkpoint.contains(name)) return cat("'", name, "': it is missing");
  const io::Checkpoint::Entry entry = after.checkpoint.at(name);
  const bool same =
      entry.info->dtype == wanted.info.dtype && entry.info->shape == wanted.info.shape && same_bytes(wanted, entry);
  return same ? std::string() : cat("'", name, "': it is not what ", maker, " makes of the model before");
}

}  // namespace coppice::upcycle::detail
