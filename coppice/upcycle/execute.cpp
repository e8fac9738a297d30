#include "coppice/upcycle/execute.h"

#include <sys/resource.h>

#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/checkpoint.h"
#include "coppice/upcycle/grown_weights.h"
#include "coppice/upcycle/lineage.h"
#include "coppice/upcycle/optimizer_state.h"
#include "coppice/upcycle/output_tensors.h"

namespace coppice::upcycle {
namespace {

namespace fs = std::filesystem;
using families::TensorSlot;

/// What will be written, before anything is. The tensors refer to the members above them.
struct Growth {
  Json config;
  std::vector<TensorSlot> slots;
  std::optional<OptimizerState> state;
  std::vector<OutputTensor> weights, optimizer;

  Growth(const families::Model& model, const GrowthPlan& plan)
      : config(grown_config(model.config, plan)),
        slots(grown_slots(model, families::read_config(config, "config.json"), plan)),
        state(OptimizerState::open(model)),
        weights(grown_weights(model, plan, slots, state ? &*state : nullptr)) {
    if (state) optimizer = state->grow(model, plan, slots);
  }
  Growth(const Growth&) = delete;
  Growth& operator=(const Growth&) = delete;
};

uint64_t bytes_of_files(const fs::path& directory, const std::vector<fs::path>& files) {
  uint64_t bytes = 0;
  for (const fs::path& file : files) bytes += fs::file_size(directory / file);
  return bytes;
}

uint64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<uint64_t>(usage.ru_maxrss) * 1024;
}

void make_folder(const fs::path& folder) {
  std::error_code error;
  if (!fs::create_directory(folder, error))
    throw Error(ErrorCode::kIo, cat(folder, ": cannot be made: ", error.message()));
}

uint64_t optimizer_bytes(const fs::path& model) {
  uint64_t bytes = 0;
  for (const fs::directory_entry& file : fs::directory_iterator(model / kTrainerFolder)) {
    if (file.path().extension() == ".safetensors") bytes += file.file_size();
  }
  return bytes;
}

}  // namespace

ExpandResult expand(const families::Model& model, const GrowthPlan& plan, const ExpandSettings& settings) {
  constexpr uint64_t kHeaderBytesPerTensor = 512;
  const io::Checkpoint& source = model.checkpoint;
  io::check_output_directory(settings.out, source.directory());
  const Json lineage =
      extend_lineage(read_lineage(source.directory()), plan, "expand", model.digest(), settings.record);
  const Growth growth(model, plan);
  const std::vector<fs::path> files = source.companion_files();

  const uint64_t tensor_bytes = total_bytes(infos_of(growth.weights)) + total_bytes(infos_of(growth.optimizer));
  const size_t tensors = growth.weights.size() + growth.optimizer.size();
  io::check_free_space(fs::absolute(settings.out).parent_path(),
                       tensor_bytes + tensors * kHeaderBytesPerTensor + bytes_of_files(source.directory(), files));

  io::AtomicDirectory out(settings.out);
  Progress progress("expand", tensor_bytes, ProgressUnit::kBytes);
  const io::ShardPlan shards = plan_output(infos_of(growth.weights), settings.max_shard_bytes, "model");
  write_output(out.path(), shards, growth.weights, settings.threads, progress);
  io::write_shard_index(out.path(), shards);
  if (growth.state) {
    const fs::path folder = out.path() / kTrainerFolder;
    make_folder(folder);
    write_output(folder, plan_optimizer_shards(infos_of(growth.optimizer), settings.max_shard_bytes), growth.optimizer,
                 settings.threads, progress);
    io::copy_file(source.directory() / kTrainerFolder / kTrainerFile, folder / kTrainerFile);
  }
  for (const fs::path& file : files) io::copy_file(source.directory() / file, out.path() / file);
  io::write_file_atomically(out.path() / "config.json", growth.config.dump(2) + "\n");
  if (!lineage.at("steps").items().empty())  // an undone first expansion leaves none
    io::write_file_atomically(out.path() / kLineageFile, lineage.dump() + "\n");
  out.commit();
  return {static_cast<int64_t>(tensors), tensor_bytes, peak_rss_bytes(), growth.state.has_value()};
}

ExpandBytes expand_bytes(const families::Model& model, const GrowthPlan& plan) {
  const Growth growth(model, plan);
  ExpandBytes bytes;
  bytes.weights_before = model.checkpoint.total_bytes();
  bytes.weights_after = total_bytes(infos_of(growth.weights));
  if (growth.state) {
    bytes.optimizer_before = optimizer_bytes(model.checkpoint.directory());
    bytes.optimizer_after = total_bytes(infos_of(growth.optimizer));
  }
  return bytes;
}

}  // namespace coppice::upcycle
