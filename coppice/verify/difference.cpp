#include <algorithm>

#include "coppice/base/text.h"
#include "coppice/output/units.h"
#include "coppice/verify/difference_detail.h"

namespace coppice::verify::detail {
namespace {

using output::OutputTensor;

/// Reads with pread, so that compared pages do not stay mapped.
bool same_bytes(const OutputTensor& wanted, const io::Checkpoint::Entry& found) {
  std::vector<std::byte> made, stored;
  uint64_t offset = found.info->offset;
  for (const output::OutputPiece& piece : wanted.pieces) {
    const bool cuttable = piece.cuttable || piece.file != nullptr;
    const uint64_t step = cuttable ? output::OutputLayout::kWindowBytes : piece.bytes;
    bool same = true;
    for (uint64_t done = 0; done < piece.bytes;
         done += step) {  // reads the piece to its end, so that its buffers are released
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

std::string difference(const OutputTensor& wanted, const std::optional<io::Checkpoint::Entry>& found,
                       std::string_view other_bytes) {
  const std::string& name = wanted.info.name;
  if (!found) return wanted.info.bytes == 0 ? std::string() : cat("'", name, "': is missing");
  const io::TensorInfo& info = *found->info;
  if (info.dtype != wanted.info.dtype || info.shape != wanted.info.shape) {
    return cat("'", name, "': it is ", io::dtype_name(info.dtype), " ", shape_text(info.shape), "; wanted ",
               io::dtype_name(wanted.info.dtype), " ", shape_text(wanted.info.shape));
  }
  return same_bytes(wanted, *found) ? std::string() : cat("'", name, "': ", other_bytes);
}

std::string difference(const OutputTensor& wanted, const families::Model& after, std::string_view other_bytes) {
  std::optional<io::Checkpoint::Entry> found;
  if (after.checkpoint.contains(wanted.info.name)) found = after.checkpoint.at(wanted.info.name);
  return difference(wanted, found, other_bytes);
}

}  // namespace coppice::verify::detail
