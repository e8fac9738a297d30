#pragma once

// R rows (tokens of all batches), D model dimension.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coppice/io/safetensors.h"

namespace coppice::score {

/// A matrix [R, D] at each of some boundaries between layers: boundary l is the input of layer l.
///
/// A plane is in the host's memory while there is room, otherwise in a file of the directory, which is complete and fsynced before
/// it gets its name. Files of an earlier run are reused.
/// Memory   `memory_bytes`, and the rows that are read or written.
/// Throws   Error{kIo}; Error{kFormat, kShape} for files that do not belong to this work.
class Planes {
 public:
  struct Shape {
    int64_t rows = 0, dim = 0;
    at::ScalarType dtype = at::kFloat;
    at::Device device{at::kCPU};  ///< of the rows that are written and read
    uint64_t bytes() const;
  };
  /// If `directory` is empty, everything stays in memory.
  Planes(std::string name, std::filesystem::path directory, uint64_t memory_bytes, Shape shape);
  ~Planes();

  bool has(int64_t layer) const { return planes_.contains(layer); }
  std::vector<int64_t> layers() const;

  /// Begins to write a plane. One plane is written at a time, its rows in any order, each once; after `finish`, `has`
  /// returns true for it.
  void begin(int64_t layer);
  void write(int64_t row, const at::Tensor& x_TD);
  void finish();

  /// A copy of rows [row, row + count).
  at::Tensor read(int64_t layer, int64_t row, int64_t count) const;
  void remove(int64_t layer);

 private:
  struct Plane {
    at::Tensor values_RD;  // undefined if the plane is a file
    std::unique_ptr<io::SafetensorsFile> file;
  };
  std::filesystem::path path_of(int64_t layer) const;
  Plane open(int64_t layer) const;

  std::string name_;
  std::filesystem::path directory_;
  uint64_t memory_bytes_, used_bytes_ = 0;
  Shape shape_;
  std::map<int64_t, Plane> planes_;
  int64_t writing_ = -1;
  at::Tensor written_RD_;
  std::unique_ptr<io::SafetensorsWriter> writer_;
};

}  // namespace coppice::score
