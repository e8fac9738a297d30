#include "coppice/upcycle/execute.h"

#include <sys/stat.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/memory.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/base/version.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/checkpoint.h"
#include "coppice/upcycle/grown_weights.h"
#include "coppice/upcycle/lineage.h"
#include "coppice/upcycle/optimizer_state.h"
#include "coppice/upcycle/output_units.h"
#include "coppice/upcycle/write_output.h"

namespace coppice::upcycle {
namespace {

namespace fs = std::filesystem;
using families::TensorSlot;

/// What will be written, before anything is. The tensors refer to the members above them.
struct Growth {
  GrowthPlan plan;
  Json config;
  std::vector<TensorSlot> slots;
  std::optional<OptimizerState> state;
  std::vector<OutputTensor> weights, optimizer;

  Growth(const families::Model& model, const GrowthPlan& given)
      : plan(with_all_layers(model, given)),
        config(grown_config(model.config, plan)),
        slots(grown_slots(model, plan)),
        state(OptimizerState::open(model)),
        weights(grown_weights(model, plan, slots, state ? &*state : nullptr)) {
    (void)families::read_config(config, "config.json of the grown model", model.config.family);
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

/// Bytes of the disk that the files below `directory` have already.
uint64_t claimed_bytes(const fs::path& directory) {
  uint64_t bytes = 0;
  std::error_code ignored;
  for (const auto& entry : fs::recursive_directory_iterator(directory, ignored)) {
    struct stat status;
    if (entry.is_regular_file(ignored) && ::lstat(entry.path().c_str(), &status) == 0) {
      bytes += static_cast<uint64_t>(status.st_blocks) * 512;
    }
  }
  return bytes;
}

uint64_t optimizer_bytes(const fs::path& model) {
  uint64_t bytes = 0;
  for (const fs::directory_entry& file : fs::directory_iterator(model / kTrainerFolder)) {
    if (file.path().extension() == ".safetensors") bytes += file.file_size();
  }
  return bytes;
}

/// Names, sizes and (if wanted) times of every file that the output is made from.
std::string source_stamp(const io::Checkpoint& source, const std::vector<fs::path>& companions, bool with_times) {
  std::vector<fs::path> files = companions;
  for (const char* name : {"config.json", kLineageFile}) files.emplace_back(name);
  for (const io::SafetensorsFile& shard : source.shards()) {
    files.push_back(shard.path().lexically_relative(source.directory()));
  }
  std::error_code none;
  for (const auto& file : fs::directory_iterator(source.directory() / kTrainerFolder, none)) {
    files.push_back(fs::path(kTrainerFolder) / file.path().filename());
  }
  std::ranges::sort(files);
  std::string stamp;
  for (const fs::path& file : files) {
    struct stat status{};
    const bool is_there = ::stat((source.directory() / file).c_str(), &status) == 0;
    stamp += cat(Json(file.string()).dump(), " ", is_there ? static_cast<int64_t>(status.st_size) : -1);
    if (with_times && is_there) {
      stamp += cat(" ", static_cast<int64_t>(status.st_mtim.tv_sec), ".", static_cast<int64_t>(status.st_mtim.tv_nsec));
    }
    stamp += "\n";
  }
  return stamp;
}

/// Everything that the output's bytes follow from; parts on other machines have it too.
std::string plan_digest(const Growth& growth, const Json& lineage, const OutputPlan& output,
                        const std::string& source_sizes) {
  Sha256 digest;
  for (const std::string& text : {std::string(version()), growth.plan.to_json().dump(), growth.config.dump(),
                                  lineage.dump(), output.digest(), source_sizes}) {
    digest.add(cat(text.size(), "\n", text));
  }
  return digest.hex();
}

OutputPlan output_plan(const Growth& growth, const io::ShardPlan& weights, uint64_t max_shard_bytes) {
  OutputPlan output;
  output.add("", weights, growth.weights);
  if (growth.state) {
    output.add(kTrainerFolder, plan_optimizer_shards(infos_of(growth.optimizer), max_shard_bytes), growth.optimizer);
  }
  return output;
}

/// What a process that was killed at the very end may have left beside the tensors, whole or not.
void remove_all_but(const OutputPlan& output, const fs::path& directory) {
  std::set<fs::path> kept;
  for (const OutputFile& file : output.files()) kept.insert(directory / file.path);
  std::vector<fs::path> others;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (!entry.is_directory() && !kept.contains(entry.path())) others.push_back(entry.path());
  }
  for (const fs::path& path : others) fs::remove(path);
}

}  // namespace

ExpandResult expand(const families::Model& model, const GrowthPlan& plan, const ExpandSettings& settings) {
  const io::Checkpoint& source = model.checkpoint;
  io::check_output_directory(settings.out, source.directory());
  const Growth growth(model, plan);
  const Json lineage =
      extend_lineage(read_lineage(source.directory()), growth.plan, "expand", model.digest(), settings.record);
  const std::vector<fs::path> companions = source.companion_files();
  const io::ShardPlan shards = plan_output(infos_of(growth.weights), settings.max_shard_bytes, "model");
  const OutputPlan output = output_plan(growth, shards, settings.max_shard_bytes);

  const std::string stamp = source_stamp(source, companions, true);
  const std::string digest = plan_digest(growth, lineage, output, source_stamp(source, companions, false));
  io::PartialDirectory out(settings.out, settings.part, settings.resume, {.plan = digest, .source = stamp});
  const uint64_t needed = output.file_bytes() + bytes_of_files(source.directory(), companions);
  const uint64_t claimed = claimed_bytes(out.path());
  io::check_free_space(fs::absolute(settings.out).parent_path(), needed - std::min(needed, claimed));

  const WrittenBytes bytes = write_output(out, output, settings.part, settings.threads);
  const auto finish = [&] {
    if (source_stamp(source, source.companion_files(), true) != stamp) {
      throw Error(ErrorCode::kFormat, cat(source.directory(),
                                          ": changed while it was read; the output would be of both "
                                          "states (begin again when it rests)"));
    }
    const fs::path& directory = source.directory();
    remove_all_but(output, out.path());
    io::write_shard_index(out.path(), shards);
    if (growth.state)
      io::copy_file(directory / kTrainerFolder / kTrainerFile, out.path() / kTrainerFolder / kTrainerFile);
    for (const fs::path& file : companions) io::copy_file(directory / file, out.path() / file);
    io::write_file_atomically(out.path() / "config.json", growth.config.dump(2) + "\n");
    if (!lineage.at("steps").items().empty()) {  // an undone first expansion leaves none
      io::write_file_atomically(out.path() / kLineageFile, lineage.dump() + "\n");
    }
  };
  ExpandResult result;
  result.missing_parts = out.seal(finish);
  result.tensors_written = static_cast<int64_t>(growth.weights.size() + growth.optimizer.size());
  result.bytes_written = bytes.written + bytes.resumed;
  result.bytes_resumed = bytes.resumed;
  result.peak_rss_bytes = peak_rss_bytes();
  result.optimizer_state = growth.state.has_value();
  return result;
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
