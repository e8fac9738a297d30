#include "coppice/output/units.h"

#include <algorithm>
#include <string_view>

#include "coppice/base/check.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/io/block_file.h"

namespace coppice::output {
namespace {

/// Smaller pieces share a unit with their neighbours.
constexpr uint64_t kSmallBytes = uint64_t{1} << 20;

}  // namespace

bool OutputUnit::computes() const {
  return std::ranges::any_of(segments, [](const UnitSegment& s) { return s.piece->file == nullptr; });
}

void OutputLayout::add(const std::filesystem::path& folder, io::ShardLayout shards,
                       std::span<const OutputTensor> tensors, const std::map<std::string, std::string>& metadata) {
  const auto name_of = [](const OutputTensor* tensor) { return tensor->info.name.view(); };
  std::vector<const OutputTensor*> by_name;
  by_name.reserve(tensors.size());
  for (const OutputTensor& tensor : tensors) by_name.push_back(&tensor);
  std::ranges::sort(by_name, {}, name_of);
  const auto tensor_of = [&](std::string_view name) -> const OutputTensor& {
    const auto found = std::ranges::lower_bound(by_name, name, {}, name_of);
    COPPICE_CHECK(found != by_name.end() && name_of(*found) == name, name);
    return **found;
  };
  for (io::ShardLayout::Shard& shard : shards.shards) {
    const auto path = folder / shard.file;
    files_.push_back({path, io::lay_out(path, std::move(shard.tensors), metadata)});
    const size_t file = files_.size() - 1;
    const io::SafetensorsLayout& layout = files_.back().layout;

    OutputUnit small;
    const auto end_small = [&] {
      if (small.bytes > 0) units_.push_back(std::move(small));
      small = {};
    };
    for (const io::TensorInfo& info : layout.tensors) {
      uint64_t offset = layout.header_bytes + info.offset;
      for (const OutputPiece& piece : tensor_of(info.name).pieces) {
        const uint64_t begin = offset;
        offset += piece.bytes;
        if (piece.bytes == 0) continue;
        if (piece.bytes < kSmallBytes) {
          if (small.bytes + piece.bytes > kWindowBytes) end_small();
          if (small.bytes == 0) small.places = {{file, begin}};
          small.segments.push_back({&piece, 0, piece.bytes});
          small.bytes += piece.bytes;
          continue;
        }
        end_small();
        if (piece.file != nullptr || (piece.identity != 0 && piece.cuttable)) {
          add_shared(file, begin, piece);
        } else {
          add_computed(file, begin, piece);
        }
      }
      COPPICE_CHECK(offset == layout.header_bytes + info.offset + info.bytes, info.name);
    }
    end_small();
  }
}

namespace {

/// Calls visit(done, bytes) for consecutive parts of a piece that begins at `offset` of its file. They end at block
/// boundaries of the output, so that all but the first and the last consist of whole blocks.
template <class Visit>
void cut(uint64_t offset, uint64_t piece_bytes, Visit visit) {
  const uint64_t in_block = offset % io::kBlockBytes;
  for (uint64_t done = 0; done < piece_bytes;) {
    const uint64_t bytes = std::min(piece_bytes - done, OutputLayout::kWindowBytes - (done == 0 ? in_block : 0));
    visit(done, bytes);
    done += bytes;
  }
}

}  // namespace

void OutputLayout::add_computed(size_t file, uint64_t offset, const OutputPiece& piece) {
  const auto add = [&](uint64_t done, uint64_t bytes) {
    units_.push_back({bytes, {{&piece, done, bytes}}, {{file, offset + done}}});
  };
  piece.cuttable ? cut(offset, piece.bytes, add) : add(0, piece.bytes);
}

void OutputLayout::add_shared(size_t file, uint64_t offset, const OutputPiece& piece) {
  const uint64_t from = piece.file != nullptr ? piece.offset : piece.identity;
  const auto [at, is_new] =
      shared_.try_emplace({piece.file, from, piece.bytes, offset % io::kBlockBytes}, units_.size());
  cut(offset, piece.bytes, [&, unit = at->second](uint64_t done, uint64_t bytes) mutable {
    if (is_new) units_.push_back({bytes, {{&piece, done, bytes}}, {}});
    units_[unit++].places.push_back({file, offset + done});
  });
}

uint64_t OutputLayout::file_bytes() const {
  uint64_t bytes = 0;
  for (const OutputFile& file : files_) bytes += file.layout.file_bytes;
  return bytes;
}

std::vector<size_t> OutputLayout::units_of(io::Part part) const {
  uint64_t total = 0;
  for (const OutputUnit& unit : units_) total += unit.bytes_written();
  std::vector<size_t> mine;
  uint64_t begin = 0;
  for (size_t i = 0; i < units_.size(); ++i) {
    // The part whose share of the bytes contains the start of the unit; in 128 bits, because total * count may not fit
    // into 64.
    const auto owner = static_cast<uint64_t>(static_cast<__uint128_t>(begin) * part.count / total);
    if (owner == part.index - 1) mine.push_back(i);
    begin += units_[i].bytes_written();
  }
  return mine;
}

std::string OutputLayout::digest() const {
  Sha256 digest;
  for (const OutputFile& file : files_) {
    digest.add(cat(file.path.string(), "\n", file.layout.header_bytes, "\n"));
    file.layout.each_header_piece([&](std::string_view piece) { digest.add(piece); });
  }
  for (const OutputUnit& unit : units_) {
    digest.add(cat(unit.bytes));
    for (const UnitPlace& place : unit.places) digest.add(cat(" ", place.file, ":", place.offset));
    digest.add("\n");
  }
  return digest.hex();
}

}  // namespace coppice::output
