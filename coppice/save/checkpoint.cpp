#include "coppice/save/checkpoint.h"

#include <ATen/ops/empty.h>

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
#include "coppice/step/divided_state.h"

namespace coppice::save {
namespace {

namespace fs = std::filesystem;
using families::Role;
using families::TensorSlot;
using io::Dtype;

constexpr uint64_t kMaxShardBytes = uint64_t{5} << 30;

Dtype dtype_of(nn::ComputeDtype dtype) { return dtype == nn::ComputeDtype::kBf16 ? Dtype::kBf16 : Dtype::kF32; }

// The shards of a checkpoint, open at once; tensors may be written in any order.
class ShardWriters {
 public:
  ShardWriters(const fs::path& directory, const io::ShardLayout& plan, FileRole role) {
    writers_.reserve(plan.shards.size());
    for (const auto& shard : plan.shards) {
      const fs::path file = directory / shard.file;
      writers_.push_back(role == FileRole::kAlone   ? io::SafetensorsWriter(file, shard.tensors)
                         : role == FileRole::kMaker ? io::SafetensorsWriter::make_shared(file, shard.tensors)
                                                    : io::SafetensorsWriter::join(file, shard.tensors));
      for (const auto& info : shard.tensors) writer_of_[info.name] = writers_.size() - 1;
    }
  }

  void write(const std::string& name, uint64_t offset, std::span<const std::byte> bytes) {
    io::SafetensorsWriter& writer = writers_.at(writer_of_.at(name));
    writer.write(writer.tensor(name), offset, bytes);
  }

  uint64_t bytes_written() const {
    uint64_t sum = 0;
    for (const auto& writer : writers_) sum += writer.bytes_written();
    return sum;
  }

  void finish() {
    for (auto& writer : writers_) writer.finish();
  }

 private:
  std::vector<io::SafetensorsWriter> writers_;
  std::map<std::string, size_t> writer_of_;
};

std::vector<io::TensorInfo> weight_tensors(const families::ModelConfig& config, Dtype model_dtype) {
  std::vector<io::TensorInfo> out;
  for (const TensorSlot& slot : families::expected_tensors(config)) {
    const Dtype dtype = models::stored_dtype(slot.role(), model_dtype);
    out.push_back(output::tensor_info(slot.name, dtype, slot.shape));
  }
  return out;
}

bool has_state(const TensorSlot& slot) {
  const bool is_empty = std::ranges::find(slot.shape, 0) != slot.shape.end();  // a shared expert of width 0
  return !is_empty && slot.role() != Role::kSelectionBias;
}

std::vector<io::TensorInfo> optimizer_tensors(const families::ModelConfig& config, bool masters) {
  std::vector<io::TensorInfo> out;
  for (const TensorSlot& slot : families::expected_tensors(config)) {
    if (!has_state(slot)) continue;
    const auto add = [&](const char* part, Dtype dtype, std::vector<int64_t> shape) {
      out.push_back(output::tensor_info(slot.name + part, dtype, std::move(shape)));
    };
    if (masters) add(".master", Dtype::kF32, slot.shape);
    add(".exp_avg", Dtype::kF32, slot.shape);
    add(".exp_avg_sq", Dtype::kF32, slot.shape);
    add(".step", Dtype::kI64, {num_steps(slot, config)});
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

// The configuration with the dtype of the file, under the key that it already uses.
Json config_with_dtype(const families::ModelConfig& of, Dtype dtype) {
  Json config = of.json;
  const char* name = dtype == Dtype::kBf16 ? "bfloat16" : "float32";
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
    const bool is_part = slot.expert >= 0 && slot.rule->layout.stacked;
    const std::span<const float> all(read);
    const auto own = is_part ? nn::part_of(slot, all, model.config.num_experts) : all;
    COPPICE_CHECK(own.size() == values.size(), slot.name);
    std::ranges::copy(own, values.begin());
  };
}

// Fills the moments of a parameter, all elements of this rank's experts, and its step counts.
void restore_state(const families::Model& model, const models::OptimizerState& from, const nn::Parameter& parameter,
                   step::ParameterState& state) {
  const auto fill = [&](const nn::Parameter::Slice& slice, const char* part, const at::Tensor& out) {
    const auto values = finite_values(from.at(slice.slot.name, part), model.checkpoint.directory());
    const bool is_stack = parameter.is_experts() && slice.slot.rule->layout.stacked;
    if (!is_stack) {
      nn::fill_from_host(slice.of(out), [&](std::span<float> place) { std::ranges::copy(values, place.begin()); });
      return;
    }
    families::TensorSlot slot = slice.slot;
    for (size_t k = 0; k < parameter.experts.size(); ++k) {
      slot.expert = parameter.experts[k];
      nn::fill_from_host(slice.of(out)[static_cast<int64_t>(k)], [&](std::span<float> place) {
        std::ranges::copy(nn::part_of(slot, std::span<const float>(values), model.config.num_experts), place.begin());
      });
    }
  };
  for (const auto& slice : parameter.slices) {
    fill(slice, "exp_avg", state.exp_avg);
    fill(slice, "exp_avg_sq", state.exp_avg_sq);
    const auto bytes = from.at(slice.slot.name, "step").data();
    std::vector<int64_t> steps(bytes.size() / sizeof(int64_t));
    std::memcpy(steps.data(), bytes.data(), bytes.size());
    const bool of_one = parameter.is_experts() && !slice.slot.rule->layout.stacked;
    for (size_t k = 0; k < state.steps.size(); ++k) {
      if (of_one && parameter.experts[k] != slice.slot.expert) continue;
      const size_t there = of_one ? 0 : parameter.experts.empty() ? k : static_cast<size_t>(parameter.experts[k]);
      state.steps[k] = steps.at(there);
    }
  }
}

}  // namespace

struct CheckpointFiles::State {
  fs::path target;
  ShardWriters weights, optimizer;
  Dtype dtype;
};

uint64_t CheckpointFiles::bytes_of(const families::ModelConfig& config, nn::ComputeDtype dtype) {
  const Dtype stored = dtype_of(dtype);
  return output::total_bytes(weight_tensors(config, stored)) +
         output::total_bytes(optimizer_tensors(config, stored != Dtype::kF32));
}

CheckpointFiles::CheckpointFiles(const fs::path& target, const fs::path& directory, const families::ModelConfig& config,
                                 nn::ComputeDtype dtype, FileRole role) {
  const Dtype stored = dtype_of(dtype);
  const fs::path trainer = directory / io::kTrainerFolder;
  std::error_code error;
  if (role != FileRole::kJoined && !fs::create_directory(trainer, error)) {
    throw Error(ErrorCode::kIo, cat(trainer, ": cannot be made: ", error.message()));
  }
  const auto weights = output::plan_output(weight_tensors(config, stored), kMaxShardBytes, "model");
  const auto states = output::plan_optimizer_shards(optimizer_tensors(config, stored != Dtype::kF32), kMaxShardBytes);
  state_.reset(new State{target, ShardWriters(directory, weights, role), ShardWriters(trainer, states, role), stored});
  if (role != FileRole::kJoined) io::write_shard_index(directory, weights);
}

CheckpointFiles::~CheckpointFiles() = default;
CheckpointFiles::CheckpointFiles(CheckpointFiles&&) noexcept = default;

void CheckpointFiles::write(const SavedState& saved) try {
  State& s = *state_;
  std::vector<std::byte> bytes;
  const auto write_values = [&](const TensorSlot& slot, int64_t first_element, std::span<const float> values) {
    const Dtype dtype = models::stored_dtype(slot.role(), s.dtype);
    require_finite(slot.name, values, dtype);
    bytes.resize(values.size() * io::dtype_bytes(dtype));
    io::from_f32(dtype, values, bytes);
    s.weights.write(slot.name, static_cast<uint64_t>(first_element) * io::dtype_bytes(dtype), bytes);
  };
  for (const SavedTensor& tensor : saved.tensors) {
    const std::string& name = tensor.slot.name;
    const auto write = [&](const char* part, const at::Tensor& there) {
      const auto here = nn::on_host(there).to(at::kFloat);
      const std::span<const float> values = nn::host_values<float>(here);
      require_finite(name + part, values, Dtype::kF32);
      s.optimizer.write(name + part, static_cast<uint64_t>(tensor.first_element) * sizeof(float),
                        std::as_bytes(values));
      return here;
    };
    const at::Tensor master = nn::on_host(tensor.master);
    write_values(tensor.slot, tensor.first_element, nn::host_values<float>(master));
    if (s.dtype != Dtype::kF32) write(".master", master);
    write(".exp_avg", tensor.exp_avg);
    write(".exp_avg_sq", tensor.exp_avg_sq);
    s.optimizer.write(name + ".step", static_cast<uint64_t>(tensor.first_step) * sizeof(int64_t),
                      std::as_bytes(std::span(tensor.steps)));
  }
  for (const TensorSlot& slot : families::expected_tensors(saved.config)) {
    const auto bias = saved.selection_bias.find(slot.layer);
    if (slot.role() != Role::kSelectionBias || bias == saved.selection_bias.end()) continue;
    write_values(slot, 0, nn::host_values<float>(bias->second));
  }
} catch (const Error& bad) {
  if (bad.code != ErrorCode::kNonFinite) throw;
  throw Error(bad.code, cat(state_->target, ": was not written: ", bad.what()));
}

uint64_t CheckpointFiles::finish() {
  const uint64_t bytes = state_->weights.bytes_written() + state_->optimizer.bytes_written();
  state_->weights.finish();
  state_->optimizer.finish();
  return bytes;
}

void write_companions(const fs::path& directory, const families::ModelConfig& config, nn::ComputeDtype dtype,
                      const TrainerState& state, const Companions& companions) {
  const fs::path trainer = directory / io::kTrainerFolder;
  io::write_file_atomically(trainer / io::kTrainerFile, state.to_json().dump(2) + "\n");
  for (const auto& [name, text] : companions.files) io::write_file_atomically(directory / name, text);
  if (companions.lineage) io::write_file_atomically(directory / io::kLineageFile, companions.lineage->dump() + "\n");
  io::write_file_atomically(directory / "config.json", config_with_dtype(config, dtype_of(dtype)).dump(2) + "\n");
}

void write_checkpoint(const fs::path& target, const SavedState& saved, const TrainerState& state,
                      const Companions& companions) {
  io::check_free_space(target.parent_path(), CheckpointFiles::bytes_of(saved.config, saved.dtype));
  io::AtomicDirectory out(target);
  CheckpointFiles files(target, out.path(), saved.config, saved.dtype, FileRole::kAlone);
  files.write(saved);
  files.finish();
  write_companions(out.path(), saved.config, saved.dtype, state, companions);
  out.commit();
}

Restored load_checkpoint(const families::Model& model, nn::ComputeDtype dtype, at::Device device,
                         const nn::Division& division) {
  const auto state = models::OptimizerState::open(model);
  if (!state) {
    throw Error(ErrorCode::kNotFound,
                cat(model.checkpoint.directory(), ": no ", io::kTrainerFolder,
                    "/ with the state of a run (use train.start=fresh to read only the weights)"));
  }
  Restored out{
      nn::Decoder(model.config, dtype, fill_from(model, *state), device, division, step::keep_masters(division)),
      step::Optimizer({})};
  auto& parameters = out.model.parameters();
  out.optimizer = step::Optimizer(parameters, division);
  for (size_t i = 0; i < parameters.size(); ++i) {
    step::ParameterState& own = out.optimizer.states()[i];
    if (!out.optimizer.divided()) {
      restore_state(model, *state, parameters[i], own);
      continue;
    }
    const auto options = own.exp_avg.options().dtype(at::kFloat);
    step::ParameterState all{.exp_avg = at::empty(parameters[i].value.sizes(), options),
                             .exp_avg_sq = at::empty(parameters[i].value.sizes(), options),
                             .grad = {},
                             .sum = {},
                             .steps = own.steps};
    restore_state(model, *state, parameters[i], all);
    const step::Interval kept = out.optimizer.kept(parameters, i);
    own.exp_avg.copy_(all.exp_avg.view({-1}).narrow(0, kept.begin, kept.count()));
    own.exp_avg_sq.copy_(all.exp_avg_sq.view({-1}).narrow(0, kept.begin, kept.count()));
    own.steps = all.steps;
  }
  return out;
}

}  // namespace coppice::save
