#include "coppice/models/generate.h"

#include <algorithm>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/io/atomic_file.h"
#include "coppice/models/expert_layout.h"

namespace coppice::models {

using families::ModelConfig;
using families::Role;
using families::TensorSlot;

namespace {

constexpr uint32_t kPurposeNewWeights = 200;  // different from those of methods/purpose.h, which count from 1

int64_t num_elements(std::span<const int64_t> shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

struct MatrixKey {
  Role role;
  int64_t layer, expert;
};

void fill_normal(const MatrixKey& key, uint64_t seed, double std, std::span<float> values) {
  const Rng rng({.seed = seed,
                 .layer = static_cast<uint32_t>(std::max<int64_t>(key.layer, 0)),
                 .role = static_cast<uint32_t>(key.role),
                 .parent = static_cast<uint32_t>(std::max<int64_t>(key.expert, 0)),
                 .purpose = kPurposeNewWeights});
  rng.fill_normal(0, values.data(), values.size());
  const auto scale = static_cast<float>(std);
  for (float& value : values) value *= scale;
}

// The matrices of every expert, with the same values as separate tensors would have.
void fill_stack(const TensorSlot& slot, uint64_t seed, double std, std::span<float> values) {
  const int64_t num_experts = slot.shape.front();
  const size_t size = values.size() / static_cast<size_t>(num_experts);
  std::vector<float> matrix;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    for (const ExpertMatrix& place : expert_matrices(slot, num_experts)) {
      matrix.resize(static_cast<size_t>(place.rows * place.cols));
      fill_normal({place.role, slot.layer, expert}, seed, std, matrix);
      scatter(place, sizeof(float), std::as_bytes(std::span(matrix)),
              std::as_writable_bytes(values.subspan(static_cast<size_t>(expert) * size, size)));
    }
  }
}

// Wide elements first, so that each tensor of a file begins at a multiple of its element size.
std::vector<TensorSlot> slots_by_width(const ModelConfig& config, io::Dtype dtype) {
  std::vector<TensorSlot> expected = expected_tensors(config), slots;
  slots.reserve(expected.size());
  for (const bool f32 : {true, false}) {
    for (TensorSlot& slot : expected) {
      if ((stored_dtype(slot.role(), dtype) == io::Dtype::kF32) == f32) slots.push_back(std::move(slot));
    }
  }
  return slots;
}

}  // namespace

std::vector<float> random_values(const TensorSlot& slot, uint64_t seed, double std) {
  const auto count = static_cast<size_t>(num_elements(slot.shape));
  if (is_norm(slot.role())) return std::vector<float>(count, slot.rule->centred ? 0.0f : 1.0f);
  std::vector<float> values(count, 0.0f);
  if (is_bias(slot.role())) return values;
  if (slot.rule->layout.stacked) {
    fill_stack(slot, seed, std, values);
  } else {
    fill_normal({slot.role(), slot.layer, slot.expert}, seed, std, values);
  }
  return values;
}

io::Dtype stored_dtype(Role role, io::Dtype dtype) { return role == Role::kSelectionBias ? io::Dtype::kF32 : dtype; }

void write_random_model(const std::filesystem::path& directory, const Json& config, io::Dtype dtype, uint64_t seed,
                        double std, uint64_t max_shard_bytes) {
  if (!io::is_float(dtype))
    throw Error(ErrorCode::kUsage, cat("weights of dtype ", io::dtype_name(dtype), "; wanted F32, BF16 or F16"));
  const ModelConfig model = families::read_config(config, (directory / "config.json").string());
  const std::vector<TensorSlot> slots = slots_by_width(model, dtype);
  std::vector<io::TensorInfo> infos;
  infos.reserve(slots.size());
  for (const TensorSlot& slot : slots) {
    infos.push_back({.name = slot.name, .dtype = stored_dtype(slot.role(), dtype), .shape = slot.shape});
  }
  const io::ShardLayout plan = io::lay_out_shards(std::move(infos), max_shard_bytes);

  io::AtomicDirectory target(directory);
  io::check_free_space(target.path(), plan.total_bytes);
  size_t first = 0;
  for (const auto& shard : plan.shards) {
    io::SafetensorsWriter writer(target.path() / shard.file, shard.tensors);
    parallel_for(shard.tensors.size(), default_threads(), [&](size_t i) {
      const io::TensorInfo& tensor = writer.tensors()[i];
      const std::vector<float> values = random_values(slots[first + i], seed, std);
      std::vector<std::byte> bytes(tensor.bytes);
      io::from_f32(tensor.dtype, values, bytes);
      writer.write(tensor, 0, bytes);
    });
    writer.finish();
    first += shard.tensors.size();
  }
  io::write_shard_index(target.path(), plan);
  io::write_file_atomically(target.path() / "config.json", config.dump(2) + "\n");
  target.commit();
}

}  // namespace coppice::models
