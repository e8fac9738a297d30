#include "coppice/output/write_model.h"

#include <sys/stat.h>

#include <algorithm>
#include <optional>
#include <set>
#include <string>
#include <system_error>

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/memory.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/base/version.h"
#include "coppice/io/atomic_file.h"
#include "coppice/io/file_rules.h"
#include "coppice/io/model_directory.h"
#include "coppice/output/units.h"
#include "coppice/output/write_output.h"

namespace coppice::output {
namespace {

namespace fs = std::filesystem;

uint64_t bytes_of_files(const io::ModelDirectory& source, const std::vector<fs::path>& files) {
  uint64_t bytes = 0;
  for (const fs::path& file : files) bytes += source.state(file)->bytes;
  return bytes;
}

/// The bytes on disk that the files below `directory` already use.
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

/// Names, sizes and (if `with_times`) times of every source file.
std::string source_stamp(std::span<const io::Checkpoint* const> sources, bool with_times) {
  std::string stamp;
  for (const io::Checkpoint* source : sources) {
    std::vector<fs::path> files = io::sort_files(*source).carried;
    for (const char* name : {"config.json", io::kLineageFile}) files.emplace_back(name);
    for (const io::SafetensorsFile& shard : source->shards()) {
      files.push_back(shard.path().lexically_relative(source->directory()));
    }
    for (const std::string& name : source->files().names(io::kTrainerFolder))
      files.push_back(fs::path(io::kTrainerFolder) / name);
    std::ranges::sort(files);
    for (const fs::path& file : files) {
      const auto state = source->files().state(file);
      stamp += cat(Json(file.string()).dump(), " ", state ? static_cast<int64_t>(state->bytes) : -1);
      if (with_times && state) stamp += cat(" ", state->modified_ns);
      stamp += "\n";
    }
  }
  return stamp;
}

/// Everything that determines the output's bytes, one line each with its digest, so that a difference can be named. It
/// is the same for parts on other machines.
std::string identity_of(const NewModel& model, const OutputSettings& settings, const OutputLayout& output,
                        const std::string& source_sizes) {
  std::string lines;
  const auto add = [&lines](std::string_view name, const std::string& text) {
    Sha256 digest;
    digest.add(text);
    lines += cat(name, " ", digest.hex(), "\n");
  };
  if (settings.record.is_object()) {
    for (const auto& [name, value] : settings.record.members()) add(cat("--", name), value.dump());
  }
  add("version", std::string(version()));
  add("plan", model.plan);
  add("config.json", model.config.dump());
  add(io::kLineageFile, model.lineage.dump());
  add("tensors", output.digest());
  add("model", source_sizes);
  return lines;
}

/// Removes files beside the tensors that a process killed at the very end may have left.
void remove_all_but(const OutputLayout& output, const fs::path& directory) {
  std::set<fs::path> kept;
  for (const OutputFile& file : output.files()) kept.insert(directory / file.path);
  std::vector<fs::path> others;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (!entry.is_directory() && !kept.contains(entry.path())) others.push_back(entry.path());
  }
  for (const fs::path& path : others) fs::remove(path);
}

std::string config_text(const NewModel& model) { return model.config.dump(2) + "\n"; }
std::string lineage_text(const NewModel& model) { return model.lineage.dump() + "\n"; }

/// Whether `out` is this model, finished by another part: its configuration, and its lineage with all settings.
bool is_written(const NewModel& model, const fs::path& out) {
  const auto has = [&](const char* name, const std::string& text) {
    std::error_code none;
    return fs::is_regular_file(out / name, none) && fs::file_size(out / name, none) == text.size() &&
           read_file(out / name) == text;
  };
  return has("config.json", config_text(model)) && has(io::kLineageFile, lineage_text(model));
}

/// The first `count` files.
io::ShardLayout shards_of(const OutputLayout& output, size_t count) {
  io::ShardLayout shards;
  for (const OutputFile& file : std::span(output.files()).first(count)) {
    shards.shards.push_back({file.path.string(), file.layout.tensors});
    shards.total_bytes += total_bytes(file.layout.tensors);
  }
  return shards;
}

/// The result of a part that has nothing to write.
WrittenModel what_is_written(const NewModel& model) {
  WrittenModel result;
  result.tensors_written = static_cast<int64_t>(model.weights.size() + (model.optimizer ? model.optimizer->size() : 0));
  for (const auto* tensors : {&model.weights, model.optimizer ? &*model.optimizer : nullptr}) {
    if (tensors == nullptr) continue;
    for (const OutputTensor& tensor : *tensors) result.model_bytes += tensor.info.bytes;
  }
  result.peak_rss_bytes = peak_rss_bytes();
  result.optimizer_state = model.optimizer.has_value();
  return result;
}

}  // namespace

std::vector<io::JudgedFile> files_left_out(const io::Checkpoint& source, bool writes_optimizer) {
  std::vector<io::JudgedFile> out = io::files_to_carry(source).left_out;
  if (!writes_optimizer && source.files().has_folder(io::kTrainerFolder)) {
    out.push_back(
        {cat(io::kTrainerFolder, "/"), "the optimizer state of the model before; training starts with a new one"});
  }
  std::ranges::sort(out, {}, &io::JudgedFile::name);
  return out;
}

WrittenModel write_model(std::span<const io::Checkpoint* const> sources, const NewModel& model,
                         const OutputSettings& settings, std::string_view verb) {
  const fs::path& first = sources.front()->directory();
  io::OutputPlace place(settings.out);
  for (const io::Checkpoint* source : sources) place.check_apart_from(source->directory());
  WrittenModel result = what_is_written(model);
  const auto is_there = [&] { return settings.part.count > 1 && is_written(model, settings.out); };
  if (is_there()) return result;
  place.check_free();
  const io::ModelDirectory& files = sources.front()->files();
  for (const io::Checkpoint* source : sources.subspan(1)) (void)io::files_to_carry(*source);
  const io::SortedFiles sorted = io::files_to_carry(*sources.front());
  OutputLayout output;
  output.add("", plan_output(infos_of(model.weights), settings.max_shard_bytes, "model"), model.weights,
             model.metadata);
  const size_t weight_files = output.files().size();
  if (model.optimizer) {
    output.add(io::kTrainerFolder, plan_optimizer_shards(infos_of(*model.optimizer), settings.max_shard_bytes),
               *model.optimizer);
  }

  const std::string stamp = source_stamp(sources, true);
  const std::string identity = identity_of(model, settings, output, source_stamp(sources, false));
  std::optional<io::PartialDirectory> begun;
  try {
    begun.emplace(std::move(place), settings.part, settings.resume,
                  io::WorkIdentity{.plan = identity, .source = stamp});
  } catch (const Error&) {
    if (is_there()) return result;
    throw;
  }
  io::PartialDirectory& out = *begun;
  const uint64_t needed = output.file_bytes() + bytes_of_files(files, sorted.carried);
  const uint64_t claimed = claimed_bytes(out.path());
  io::check_free_space(out.path(), needed - std::min(needed, claimed));

  const WrittenBytes bytes = write_output(out, output, settings.part, settings.threads, verb);
  const auto finish = [&] {
    if (source_stamp(sources, true) != stamp) {
      throw Error(ErrorCode::kFormat, cat(first,
                                          ": changed while it was read, so the output would be inconsistent (start "
                                          "again, and do not change the source)"));
    }
    remove_all_but(output, out.path());
    if (weight_files > 1) io::write_shard_index(out.path(), shards_of(output, weight_files));
    if (model.optimizer) {
      const fs::path file = fs::path(io::kTrainerFolder) / io::kTrainerFile;
      files.copy(file, out.path() / file);
    }
    for (const fs::path& file : sorted.carried) files.copy(file, out.path() / file);
    io::write_file_atomically(out.path() / "config.json", config_text(model));
    if (!model.lineage.at("steps").items().empty()) {  // after undoing the first expansion there is none
      io::write_file_atomically(out.path() / io::kLineageFile, lineage_text(model));
    }
  };
  result.missing_parts = out.seal([&] {
    finish();
    result.is_completed_here = true;
  });
  result.bytes_written = bytes.written + bytes.resumed;
  result.bytes_resumed = bytes.resumed;
  result.peak_rss_bytes = peak_rss_bytes();
  return result;
}

}  // namespace coppice::output
