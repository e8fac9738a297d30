#pragma once

// Values of a checkpoint written over in place.

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string_view>
#include <vector>

#include "coppice/io/checkpoint.h"

namespace coppice::testing {

/// Gives `edit` the values of a tensor and stores what it leaves, rounded to the tensor's dtype.
inline void edit_values(const std::filesystem::path& model, std::string_view name,
                        const std::function<void(std::vector<float>&)>& edit) {
  std::filesystem::path file;
  std::vector<std::byte> bytes;
  uint64_t offset = 0;
  {
    const auto checkpoint = io::Checkpoint::open(model);
    const auto entry = checkpoint.at(name);
    auto values = checkpoint.read_f32(name);
    edit(values);
    bytes.resize(entry.info->bytes);
    io::from_f32(entry.info->dtype, values, bytes);
    file = entry.file->path();
    offset = entry.info->offset;
  }
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  uint64_t header = 0;
  stream.read(reinterpret_cast<char*>(&header), sizeof(header));
  stream.seekp(static_cast<std::streamoff>(sizeof(header) + header + offset));
  stream.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

inline void set_values(const std::filesystem::path& model, std::string_view name, const std::vector<float>& values) {
  edit_values(model, name, [&](std::vector<float>& stored) { stored = values; });
}

/// Stores every tensor of F32 in `dtype`, rounded.
inline void store_in(const std::filesystem::path& model, io::Dtype dtype) {
  std::vector<io::TensorInfo> infos;
  std::vector<std::vector<std::byte>> bytes;
  {
    const auto checkpoint = io::Checkpoint::open(model);
    for (const auto& entry : checkpoint.entries()) {
      io::TensorInfo info{.name = entry.info->name, .dtype = dtype, .shape = entry.info->shape};
      bytes.emplace_back(static_cast<size_t>(info.elements()) * io::dtype_bytes(dtype));
      io::from_f32(dtype, checkpoint.read_f32(entry.info->name.view()), bytes.back());
      infos.push_back(std::move(info));
    }
  }
  std::filesystem::remove(model / "model.safetensors");
  io::SafetensorsWriter writer(model / "model.safetensors", infos);
  for (const io::TensorInfo& info : writer.tensors()) {
    const auto at = std::ranges::find(infos, info.name, &io::TensorInfo::name) - infos.begin();
    writer.write(info, 0, bytes[static_cast<size_t>(at)]);
  }
  writer.finish();
}

}  // namespace coppice::testing
