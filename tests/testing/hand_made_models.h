#pragma once

// Checkpoints put together tensor by tensor, for families that coppice grows and does not make.

#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/base/rng.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/checkpoint.h"

namespace coppice::testing {

struct HandMadeTensor {
  io::TensorInfo info;
  std::vector<std::byte> bytes;
};

/// Values that differ in every element, the same for the same number.
inline std::vector<float> some_values(size_t count, uint64_t number) {
  std::vector<float> values(count);
  Rng({.seed = number, .purpose = 250}).fill_normal(0, values.data(), count);
  return values;
}

inline HandMadeTensor f32_tensor(const std::string& name, std::vector<int64_t> shape, std::vector<float> values) {
  HandMadeTensor tensor{{.name = name, .dtype = io::Dtype::kF32, .shape = std::move(shape)}, {}};
  const auto bytes = std::as_bytes(std::span(values));  // none of a tensor without elements
  tensor.bytes.assign(bytes.begin(), bytes.end());
  return tensor;
}

/// A tensor of random values; `number` tells it from others.
inline HandMadeTensor f32_tensor(const std::string& name, std::vector<int64_t> shape, uint64_t number) {
  size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return f32_tensor(name, std::move(shape), some_values(count, number));
}

/// A tensor of random bytes.
inline HandMadeTensor raw_tensor(const std::string& name, io::Dtype dtype, std::vector<int64_t> shape,
                                 uint64_t number) {
  HandMadeTensor tensor{{.name = name, .dtype = dtype, .shape = std::move(shape)}, {}};
  const size_t bytes = static_cast<size_t>(tensor.info.elements() * io::dtype_bits(dtype) / 8);
  const Rng rng({.seed = number, .purpose = 251});
  for (size_t i = 0; i < bytes; ++i) tensor.bytes.push_back(static_cast<std::byte>(rng.below(i, 256)));
  return tensor;
}

inline std::filesystem::path write_model(const std::filesystem::path& directory, const Json& config,
                                         const std::vector<HandMadeTensor>& tensors) {
  std::filesystem::create_directories(directory);
  std::vector<io::TensorInfo> infos;
  for (const HandMadeTensor& tensor : tensors) infos.push_back(tensor.info);
  io::SafetensorsWriter writer(directory / "model.safetensors", infos);
  for (size_t i = 0; i < tensors.size(); ++i) writer.write(writer.tensors()[i], 0, tensors[i].bytes);
  writer.finish();
  io::write_file_atomically(directory / "config.json", config.dump(2));
  return directory;
}

/// The keys that a family known for surgery only must have.
inline Json surgery_config(const std::string& model_type, const std::string& experts_key, int64_t experts,
                           const std::string& top_k_key = "num_experts_per_tok") {
  return Json::object({{"model_type", model_type},
                       {"num_hidden_layers", 1},
                       {"hidden_size", 8},
                       {experts_key, experts},
                       {top_k_key, 2}});
}

}  // namespace coppice::testing
