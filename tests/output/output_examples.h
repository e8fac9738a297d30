#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/output/tensors.h"
#include "tests/testing/safetensors_files.h"

namespace coppice::testing {

inline std::byte example_byte(uint64_t i) { return static_cast<std::byte>((i * 2654435761u) >> 13); }

/// A source of U8 tensors t0, t1 ... of these sizes.
inline io::SafetensorsFile write_source(const std::filesystem::path& path, const std::vector<int64_t>& sizes) {
  std::vector<io::TensorInfo> infos;
  for (size_t i = 0; i < sizes.size(); ++i) {
    infos.push_back({.name = cat("t", i), .dtype = io::Dtype::kU8, .shape = {sizes[i]}});
  }
  {
    io::SafetensorsWriter writer(path, infos);
    for (const auto& info : writer.tensors()) {
      std::vector<std::byte> bytes(info.bytes);
      for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = example_byte(info.offset + i);
      writer.write(info, 0, bytes);
    }
    writer.finish();
  }
  return io::SafetensorsFile::open(path);
}

inline output::OutputTensor copy_of(const io::SafetensorsFile& source, const std::string& tensor, std::string name) {
  const auto* info = source.find(tensor);
  return output::copied_tensor(output::tensor_info(std::move(name), io::Dtype::kU8, info->shape), {&source, info});
}

/// Bytes that follow from `start`.
inline output::OutputTensor computed(std::string name, int64_t size, uint64_t start, bool cuttable = false) {
  output::OutputTensor tensor{output::tensor_info(std::move(name), io::Dtype::kU8, {size}), {}};
  const output::PieceMaker::Fill fill = [start](uint64_t offset, std::span<std::byte> out) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = example_byte(start + 3 * (offset + i));
  };
  tensor.pieces.push_back(output::computed_piece(tensor.info.bytes, [fill] { return fill; }, cuttable));
  return tensor;
}

/// What `write_output` must give: each file's bytes, written one after the other.
inline std::map<std::string, std::string> expected_files(const std::filesystem::path& scratch,
                                                         const io::ShardLayout& shards,
                                                         const std::vector<output::OutputTensor>& tensors) {
  std::map<std::string, std::string> files;
  for (const auto& shard : shards.shards) {
    io::SafetensorsWriter writer(scratch, shard.tensors);
    for (const auto& tensor : tensors) {
      if (std::ranges::find(shard.tensors, tensor.info.name, &io::TensorInfo::name) == shard.tensors.end()) continue;
      std::vector<std::byte> bytes(tensor.info.bytes);
      auto rest = std::span(bytes);
      for (const auto& piece : tensor.pieces) {
        const auto out = rest.first(piece.bytes);
        rest = rest.subspan(piece.bytes);
        if (piece.bytes > 0) piece.fill(0, out);
      }
      writer.write(writer.tensor(tensor.info.name), 0, bytes);
    }
    writer.finish();
    files[shard.file] = read_file(scratch);
  }
  return files;
}

}  // namespace coppice::testing
