#include "coppice/train/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/checkpoint.h"
#include "coppice/models/generate.h"
#include "coppice/models/optimizer_state.h"
#include "coppice/nn/host.h"
#include "coppice/output/tensors.h"
#include "coppice/plan/lineage.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using families::Role;
using families::TensorSlot;
using io::Dtype;

constexpr uint64_t kMaxShardBytes = uint64_t{5} << 30;

Dtype dtype_of(const nn::Decoder& model) {
  return model.dtype() == nn::ComputeDtype::kBf16 ? Dtype::kBf16 : Dtype::kF32;
}

// All shards of a checkpoint, open at once; tensors may be written in any order.
class ShardWriters {
 public:
  ShardWriters(const fs::path& directory, const io::ShardLayout& plan) {
    writers_.reserve(plan.shards.size());
    for (const auto& shard : plan.shards) {
      writers_.emplace_back(directory / shard.file, shard.tensors);
      for (const auto& info : shard.tensors) writer_of_[info.name] = writers_.size() - 1;
    }
  }

  void write(const std::string& name, std::span<const std::byte> bytes) {
    io::SafetensorsWriter& writer = writers_.at(writer_of_.at(name));
    writer.write(writer.tensor(name), 0, bytes);
  }

  void finish() {
    for (auto& writer : writers_) writer.finish();
  }

 private:
  std::vector<io::SafetensorsWriter> writers_;
  std::map<std::string, size_t> writer_of_;
};

std::vector<io::TensorInfo> weight_tensors(const nn::Decoder& model) {
  std::vector<io::TensorInfo> out;
  for (const TensorSlot& slot : families::expected_tensors(model.config())) {
    const Dtype dtype = models::stored_dtype(slot.role(), dtype_of(model));
    out.push_back(output::tensor_info(slot.name, dtype, slot.shape));
  }
  return out;
}

/// Checks values before they are written as `dtype`; they must not round to infinity either.
void require_finite(std::string_view tensor, std::span<const float> values, Dtype dtype) {
  const float most = dtype == Dtype::kBf16 ? 0x1.FEFFFEp127f : std::numeric_limits<float>::max();
  const auto is_bad = [most](float x) { return !(std::abs(x) <= most); };
  bool any = false;
  for (const float x : values) any |= is_bad(x);  // without an early exit, so that it runs at memory speed
  if (!any) return;
  const float bad = *std::ranges::find_if(values, is_bad);
  throw Error(ErrorCode::kNonFinite, cat("'", tensor, "' holds ", static_cast<double>(bad),
                                         "; wanted finite numbers of ", io::dtype_name(dtype),
                                         ": training has diverged (lower optimizer.lr or balance.rate, and continue "
                                         "from the last good checkpoint with train.resume)"));
}

void write_weights(const fs::path& directory, const nn::Decoder& model) {
  const auto tensors = weight_tensors(model);
  const auto plan = output::plan_output(tensors, kMaxShardBytes, "model");
  ShardWriters writers(directory, plan);
  std::vector<std::byte> bytes;
  model.visit([&](const TensorSlot& slot, std::span<const float> values) {
    const Dtype dtype = models::stored_dtype(slot.role(), dtype_of(model));
    require_finite(slot.name, values, dtype);
    bytes.resize(values.size() * io::dtype_bytes(dtype));
    io::from_f32(dtype, values, bytes);
    writers.write(slot.name, bytes);
  });
  writers.finish();
  io::write_shard_index(directory, plan);
}

// One tensor of the model with its place in memory.
struct Place {
  const nn::Parameter* parameter;
  const step::ParameterState* state;
  const nn::Parameter::Slice* slice;

  // The step count of one expert, or all step counts of the parameter.
  std::span<const int64_t> steps() const {
    const std::span<const int64_t> all(state->steps);
    return slice->slot.expert >= 0 ? all.subspan(static_cast<size_t>(slice->slot.expert), 1) : all;
  }
};

// In the order of the family's table, as the model's own tensors.
std::vector<Place> places(const nn::Decoder& model, const step::Optimizer& optimizer) {
  const auto& parameters = model.parameters();
  COPPICE_CHECK(parameters.size() == optimizer.states().size());
  std::map<std::string_view, Place> by_name;
  for (size_t i = 0; i < parameters.size(); ++i) {
    for (const auto& slice : parameters[i].slices) {
      by_name[slice.slot.name] = {&parameters[i], &optimizer.states()[i], &slice};
    }
  }
  std::vector<Place> out;
  for (const TensorSlot& slot : families::expected_tensors(model.config())) {
    if (const auto found = by_name.find(slot.name); found != by_name.end()) out.push_back(found->second);
  }
  COPPICE_CHECK(out.size() == by_name.size());
  return out;
}

std::vector<io::TensorInfo> optimizer_tensors(const std::vector<Place>& all, bool masters) {
  std::vector<io::TensorInfo> out;
  for (const Place& place : all) {
    const TensorSlot& slot = place.slice->slot;
    const auto add = [&](const char* part, Dtype dtype, std::vector<int64_t> shape) {
      out.push_back(output::tensor_info(slot.name + part, dtype, std::move(shape)));
    };
    if (masters) add(".master", Dtype::kF32, slot.shape);
    add(".exp_avg", Dtype::kF32, slot.shape);
    add(".exp_avg_sq", Dtype::kF32, slot.shape);
    add(".step", Dtype::kI64, {static_cast<int64_t>(place.steps().size())});
  }
  return out;
}

void write_optimizer(const fs::path& directory, const std::vector<Place>& all,
                     const std::vector<io::TensorInfo>& tensors, bool masters) {
  ShardWriters writers(directory, output::plan_optimizer_shards(tensors, kMaxShardBytes));
  for (const Place& place : all) {
    const std::string& name = place.slice->slot.name;
    const auto write = [&](const char* part, const at::Tensor& tensor) {
      const auto here = nn::on_host(place.slice->of(tensor)).to(at::kFloat);
      const std::span<const float> values = nn::host_values<float>(here);
      require_finite(name + part, values, Dtype::kF32);
      writers.write(name + part, std::as_bytes(values));
    };
    if (masters) write(".master", place.parameter->master);
    write(".exp_avg", place.state->exp_avg);
    write(".exp_avg_sq", place.state->exp_avg_sq);
    writers.write(name + ".step", std::as_bytes(place.steps()));
  }
  writers.finish();
}

// The configuration with the dtype of the file, under the key that it already uses.
Json config_with_dtype(const nn::Decoder& model) {
  Json config = model.config().json;
  const char* name = dtype_of(model) == Dtype::kBf16 ? "bfloat16" : "float32";
  if (config.find("torch_dtype") != nullptr) config["torch_dtype"] = name;
  if (config.find("torch_dtype") == nullptr || config.find("dtype") != nullptr) config["dtype"] = name;
  return config;
}

std::vector<float> finite_values(const io::Checkpoint::Entry& entry, const fs::path& directory) {
  std::vector<float> values(static_cast<size_t>(entry.info->elements()));
  io::to_f32(entry.info->dtype, entry.data(), values);
  for (const float x : values) {
    if (!std::isfinite(x)) {
      throw Error(ErrorCode::kNonFinite, cat(directory, ": '", entry.info->name, "' holds ", static_cast<double>(x),
                                             "; wanted finite numbers (go back to an earlier checkpoint)"));
    }
  }
  return values;
}

// The model tensors in fp32, masters first.
nn::TensorFill fill_from(const families::Model& model, const models::OptimizerState& state) {
  return [&model, &state](const TensorSlot& slot, std::span<float> values) {
    const bool master = slot.role() != Role::kSelectionBias && state.has_master(slot.name);
    const auto entry = master ? state.at(slot.name, "master") : model.checkpoint.at(slot.name);
    const auto read = finite_values(entry, model.checkpoint.directory());
    COPPICE_CHECK(read.size() == values.size(), slot.name);
    std::copy(read.begin(), read.end(), values.begin());
  };
}

void restore_state(const families::Model& model, const models::OptimizerState& from, const nn::Parameter& parameter,
                   step::ParameterState& state) {
  const auto fill = [&](const nn::Parameter::Slice& slice, const char* part, const at::Tensor& out) {
    const auto values = finite_values(from.at(slice.slot.name, part), model.checkpoint.directory());
    nn::fill_from_host(slice.of(out), [&](std::span<float> place) { std::ranges::copy(values, place.begin()); });
  };
  for (const auto& slice : parameter.slices) {
    fill(slice, "exp_avg", state.exp_avg);
    fill(slice, "exp_avg_sq", state.exp_avg_sq);
    const auto steps = from.at(slice.slot.name, "step").data();
    const auto first = static_cast<size_t>(std::max<int64_t>(slice.slot.expert, 0));
    std::memcpy(state.steps.data() + first, steps.data(), steps.size());
  }
}

}  // namespace

void write_checkpoint(const fs::path& target, const nn::Decoder& model, const step::Optimizer& optimizer,
                      const TrainerState& state, const Companions& companions) {
  const bool masters = dtype_of(model) != Dtype::kF32;
  const auto all = places(model, optimizer);
  const auto tensors = optimizer_tensors(all, masters);
  io::check_free_space(target.parent_path(), output::total_bytes(weight_tensors(model)) + output::total_bytes(tensors));
  io::AtomicDirectory out(target);
  const fs::path trainer = out.path() / io::kTrainerFolder;
  std::error_code error;
  if (!fs::create_directory(trainer, error)) throw Error(ErrorCode::kIo, cat(trainer, ": ", error.message()));
  try {
    write_weights(out.path(), model);
    write_optimizer(trainer, all, tensors, masters);
  } catch (const Error& bad) {
    if (bad.code != ErrorCode::kNonFinite) throw;
    throw Error(bad.code, cat(target, ": was not written: ", bad.what()));
  }
  io::write_file_atomically(trainer / io::kTrainerFile, state.to_json().dump(2) + "\n");
  for (const auto& [name, text] : companions.files) io::write_file_atomically(out.path() / name, text);
  if (companions.lineage) io::write_file_atomically(out.path() / io::kLineageFile, companions.lineage->dump() + "\n");
  io::write_file_atomically(out.path() / "config.json", config_with_dtype(model).dump(2) + "\n");
  out.commit();
}

Restored load_checkpoint(const families::Model& model, nn::ComputeDtype dtype, at::Device device) {
  const auto state = models::OptimizerState::open(model);
  if (!state) {
    throw Error(ErrorCode::kNotFound,
                cat(model.checkpoint.directory(), ": no ", io::kTrainerFolder,
                    "/ with the state of a run (use train.start=fresh to read only the weights)"));
  }
  Restored out{nn::Decoder(model.config, dtype, fill_from(model, *state), device), step::Optimizer({})};
  const auto& parameters = out.model.parameters();
  out.optimizer = step::Optimizer(parameters);
  for (size_t i = 0; i < parameters.size(); ++i) {
    restore_state(model, *state, parameters[i], out.optimizer.states()[i]);
  }
  return out;
}

}  // namespace coppice::train
