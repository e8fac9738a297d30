#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/io/safetensors.h"

namespace coppice::testing {

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary) << text;
}

/// A safetensors file as it stands, right or wrong: the length of `header`, `header`, `data`.
inline std::filesystem::path write_raw_safetensors(const std::filesystem::path& path, std::string_view header,
                                                   std::string_view data) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  write_text(path, bytes.append(header).append(data));
  return path;
}

/// The same with `data_bytes` bytes of data: 0, 1, 2 ...
inline std::filesystem::path write_raw_safetensors(const std::filesystem::path& path, std::string_view header,
                                                   size_t data_bytes) {
  std::string data(data_bytes, '\0');
  for (size_t i = 0; i < data_bytes; ++i) data[i] = static_cast<char>(i);
  return write_raw_safetensors(path, header, data);
}

/// A tensor by its values.
struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
  io::Dtype dtype = io::Dtype::kF32;
};

/// A good safetensors file; values are rounded to each tensor's dtype.
inline void write_tensors(const std::filesystem::path& path, std::span<const NamedTensor> tensors) {
  std::filesystem::create_directories(path.parent_path());
  std::vector<io::TensorInfo> infos;
  for (const auto& t : tensors) infos.push_back({.name = t.name, .dtype = t.dtype, .shape = t.shape});
  io::SafetensorsWriter writer(path, infos);
  for (const auto& t : tensors) {
    const auto& info = writer.tensor(t.name);
    std::vector<std::byte> bytes(info.bytes);
    io::from_f32(t.dtype, t.values, bytes);
    writer.write(info, 0, bytes);
  }
  writer.finish();
}
inline void write_tensors(const std::filesystem::path& path, std::initializer_list<NamedTensor> tensors) {
  write_tensors(path, std::span(tensors.begin(), tensors.size()));
}

}  // namespace coppice::testing
