#include "coppice/upcycle/output_tensors.h"

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/thread_pool.h"

namespace coppice::upcycle {
namespace {

constexpr uint64_t kPieceBytes = uint64_t{8} << 20;

/// The shards being written. Each file is open from its first byte to its last, so that few are open at a time.
class OpenShards {
 public:
  OpenShards(const std::filesystem::path& directory, const io::ShardPlan& plan) : shards_(plan.shards.size()) {
    for (size_t s = 0; s < shards_.size(); ++s) {
      shards_[s].path = directory / plan.shards[s].file;
      shards_[s].planned = plan.shards[s].tensors;
      shards_[s].left = plan.shards[s].tensors.size();
      for (size_t t = 0; t < shards_[s].planned.size(); ++t) places_.emplace(shards_[s].planned[t].name, Place{s, t});
    }
  }

  void write(const std::string& tensor, uint64_t offset, std::span<const std::byte> bytes) {
    const Place place = places_.at(tensor);
    io::SafetensorsWriter& writer = open(shards_[place.shard]);
    writer.write(writer.tensors()[place.tensor], offset, bytes);
  }

  /// All bytes of `tensor` are written; the last tensor of a shard ends the file.
  void end(const std::string& tensor) {
    Shard& shard = shards_[places_.at(tensor).shard];
    open(shard);  // a shard may hold empty tensors alone
    const std::lock_guard lock(shard.mutex);
    if (--shard.left > 0) return;
    shard.writer->finish();
    shard.writer.reset();
  }

 private:
  struct Place {
    size_t shard, tensor;
  };
  struct Shard {
    std::filesystem::path path;
    std::vector<io::TensorInfo> planned;
    std::mutex mutex;
    std::optional<io::SafetensorsWriter> writer;
    size_t left = 0;
  };

  static io::SafetensorsWriter& open(Shard& shard) {
    const std::lock_guard lock(shard.mutex);
    if (!shard.writer) shard.writer.emplace(shard.path, shard.planned);
    return *shard.writer;
  }

  std::vector<Shard> shards_;
  std::unordered_map<std::string, Place> places_;
};

/// One source tensor is read once and written to every output that copies it.
struct Job {
  std::vector<const OutputTensor*> outputs;
};

std::vector<Job> jobs_of(std::span<const OutputTensor> tensors) {
  std::vector<Job> jobs;
  std::map<std::pair<std::filesystem::path, uint64_t>, size_t> job_of_source;
  for (const OutputTensor& tensor : tensors) {
    if (tensor.source.file != nullptr && tensor.info.bytes > 0) {
      const auto [at, is_new] =
          job_of_source.try_emplace({tensor.source.file->path(), tensor.source.info->offset}, jobs.size());
      if (!is_new) {
        jobs[at->second].outputs.push_back(&tensor);
        continue;
      }
    }
    jobs.push_back({{&tensor}});
  }
  return jobs;
}

void copy_source(const Job& job, OpenShards& shards, Progress& progress) {
  const io::Checkpoint::Entry& source = job.outputs.front()->source;
  const std::span<const std::byte> data = source.data();
  for (uint64_t done = 0; done < data.size();) {
    check_interrupt();
    const uint64_t bytes = std::min<uint64_t>(kPieceBytes, data.size() - done);
    for (const OutputTensor* output : job.outputs) shards.write(output->info.name, done, data.subspan(done, bytes));
    io::TensorInfo piece = *source.info;
    piece.offset += done;
    piece.bytes = bytes;
    source.file->release(piece);
    done += bytes;
    progress.advance(bytes * job.outputs.size());
  }
}

void compute_tensor(const OutputTensor& tensor, OpenShards& shards, Progress& progress) {
  check_interrupt();
  std::vector<std::byte> bytes(tensor.info.bytes);
  tensor.compute(bytes);
  for (uint64_t done = 0; done < bytes.size(); done += kPieceBytes) {
    check_interrupt();
    const uint64_t piece = std::min<uint64_t>(kPieceBytes, bytes.size() - done);
    shards.write(tensor.info.name, done, std::span(bytes).subspan(done, piece));
    progress.advance(piece);
  }
}

}  // namespace

io::TensorInfo tensor_info(std::string name, io::Dtype dtype, std::vector<int64_t> shape) {
  io::TensorInfo info;
  info.name = std::move(name);
  info.dtype = dtype;
  info.shape = std::move(shape);
  info.bytes = static_cast<uint64_t>(info.elements()) * static_cast<uint64_t>(io::dtype_bits(dtype)) / 8;
  return info;
}

uint64_t total_bytes(std::span<const OutputTensor> tensors) {
  uint64_t bytes = 0;
  for (const OutputTensor& tensor : tensors) bytes += tensor.info.bytes;
  return bytes;
}

io::ShardPlan plan_output(std::span<const OutputTensor> tensors, uint64_t max_shard_bytes, std::string_view stem) {
  std::vector<io::TensorInfo> infos;
  infos.reserve(tensors.size());
  for (const OutputTensor& tensor : tensors) infos.push_back(tensor.info);
  io::ShardPlan plan = io::plan_shards(std::move(infos), max_shard_bytes, stem);
  for (io::ShardPlan::Shard& shard : plan.shards) {
    std::multimap<int, io::TensorInfo, std::greater<>> widest_first;  // equal widths stay in order
    for (io::TensorInfo& info : shard.tensors) widest_first.emplace(io::dtype_bits(info.dtype), std::move(info));
    shard.tensors.clear();
    for (auto& [bits, info] : widest_first) shard.tensors.push_back(std::move(info));
  }
  return plan;
}

void write_output(const std::filesystem::path& directory, const io::ShardPlan& plan,
                  std::span<const OutputTensor> tensors, size_t threads, Progress& progress) {
  OpenShards shards(directory, plan);
  const std::vector<Job> jobs = jobs_of(tensors);
  parallel_for(jobs.size(), threads, [&](size_t index) {
    const Job& job = jobs[index];
    if (job.outputs.front()->source.file != nullptr) {
      copy_source(job, shards, progress);
    } else {
      compute_tensor(*job.outputs.front(), shards, progress);
    }
    for (const OutputTensor* output : job.outputs) shards.end(output->info.name);
  });
}

SourceMatrices::~SourceMatrices() {
  for (const io::Checkpoint::Entry& entry : read_) entry.file->release(*entry.info);
}

MatrixBytes SourceMatrices::read(const io::Checkpoint::Entry& entry) {
  const std::vector<int64_t>& shape = entry.info->shape;
  COPPICE_CHECK(shape.size() == 1 || shape.size() == 2, entry.info->name);
  read_.push_back(entry);
  return {entry.info->dtype, shape[0], shape.size() == 2 ? shape[1] : 1, entry.data()};
}

}  // namespace coppice::upcycle
