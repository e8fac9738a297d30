#pragma once

// Divides the output files into units of work: consecutive bytes of a file that one thread reads or computes and
// writes, and that are recorded as done together.

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "coppice/io/partial_directory.h"
#include "coppice/output/tensors.h"

namespace coppice::output {

struct OutputFile {
  std::filesystem::path path;  ///< below the output directory
  io::SafetensorsLayout layout;
};

/// Part of a piece.
struct UnitSegment {
  const OutputPiece* piece = nullptr;
  uint64_t skip = 0, bytes = 0;
};

struct UnitPlace {
  size_t file = 0;
  uint64_t offset = 0;  ///< from the start of the file
};

/// Bytes that are read or computed once and written to every place that has them.
struct OutputUnit {
  uint64_t bytes = 0;
  std::vector<UnitSegment> segments;  ///< in order
  std::vector<UnitPlace> places;      ///< offsets are equal modulo a block

  bool computes() const;
  uint64_t bytes_written() const { return bytes * places.size(); }
};

/// The files of an output, cut into units. The cut depends on the tensors and on the layout of source and output, not on threads or parts.
///
/// Memory   about a hundred bytes for each tensor and for every 4 MiB.
class OutputLayout {
 public:
  /// The largest unit, except computed pieces that cannot be divided.
  static constexpr uint64_t kWindowBytes = uint64_t{4} << 20;

  /// Adds the files of `shards` below `folder`. `tensors` must outlive this object.
  void add(const std::filesystem::path& folder, io::ShardLayout shards, std::span<const OutputTensor> tensors,
           const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

  const std::vector<OutputFile>& files() const { return files_; }
  const std::vector<OutputUnit>& units() const { return units_; }
  uint64_t file_bytes() const;
  /// The units of a part; the parts' shares are contiguous and of about the same size.
  std::vector<size_t> units_of(io::Part part) const;
  /// SHA-256 of the files' headers and the starts of units.
  std::string digest() const;

 private:
  using SharedKey = std::tuple<const io::SafetensorsFile*, uint64_t, uint64_t, uint64_t>;

  void add_computed(size_t file, uint64_t offset, const OutputPiece& piece);
  void add_shared(size_t file, uint64_t offset, const OutputPiece& piece);

  std::vector<OutputFile> files_;
  std::vector<OutputUnit> units_;
  // Source file and offset (or no file and an identity), bytes, offset in a block -> the first of its units.
  std::map<SharedKey, size_t> shared_;
};

}  // namespace coppice::output
