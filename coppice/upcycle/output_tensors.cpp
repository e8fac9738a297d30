#include "coppice/upcycle/output_tensors.h"

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>
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
  OpenShards(const std::filesystem::path& directory, const io::ShardPlan& plan, std::span<const OutputTensor> tensors)
      : shards_(plan.shards.size()) {
    for (size_t s = 0; s < shards_.size(); ++s) {
      shards_[s].path = directory / plan.shards[s].file;
      shards_[s].planned = plan.shards[s].tensors;
      for (size_t t = 0; t < shards_[s].planned.size(); ++t) places_.emplace(shards_[s].planned[t].name, Place{s, t});
    }
    for (const OutputTensor& tensor : tensors) shards_[places_.at(tensor.info.name).shard].left += tensor.pieces.size();
  }

  void write(const std::string& tensor, uint64_t offset, std::span<const std::byte> bytes) {
    const Place place = places_.at(tensor);
    io::SafetensorsWriter& writer = open(shards_[place.shard]);
    writer.write(writer.tensors()[place.tensor], offset, bytes);
  }

  /// All bytes of a piece of `tensor` are written; the last piece of a shard ends the file.
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
    size_t left = 0;  // pieces
  };

  static io::SafetensorsWriter& open(Shard& shard) {
    const std::lock_guard lock(shard.mutex);
    if (!shard.writer) shard.writer.emplace(shard.path, shard.planned);
    return *shard.writer;
  }

  std::vector<Shard> shards_;
  std::unordered_map<std::string, Place> places_;
};

/// A piece with its place in the output.
struct Placed {
  const OutputTensor* tensor;
  const OutputPiece* piece;
  uint64_t offset;  // in the tensor
};

/// The same bytes of a source are read once and written to every output that has them.
struct Job {
  std::vector<Placed> outputs;
};

std::vector<Job> jobs_of(std::span<const OutputTensor> tensors) {
  std::vector<Job> jobs;
  std::map<std::tuple<const io::SafetensorsFile*, uint64_t, uint64_t>, size_t> job_of_source;
  for (const OutputTensor& tensor : tensors) {
    uint64_t offset = 0;
    for (const OutputPiece& piece : tensor.pieces) {
      const Placed placed{&tensor, &piece, offset};
      offset += piece.bytes;
      if (piece.file != nullptr && piece.bytes > 0) {
        const auto [at, is_new] = job_of_source.try_emplace({piece.file, piece.offset, piece.bytes}, jobs.size());
        if (!is_new) {
          jobs[at->second].outputs.push_back(placed);
          continue;
        }
      }
      jobs.push_back({{placed}});
    }
    COPPICE_CHECK(offset == tensor.info.bytes, tensor.info.name);
  }
  return jobs;
}

void copy_source(const Job& job, OpenShards& shards, Progress& progress) {
  const OutputPiece& source = *job.outputs.front().piece;
  io::TensorInfo window;
  for (uint64_t done = 0; done < source.bytes;) {
    check_interrupt();
    window.offset = source.offset + done;
    window.bytes = std::min<uint64_t>(kPieceBytes, source.bytes - done);
    const auto data = source.file->data(window);
    for (const Placed& output : job.outputs) shards.write(output.tensor->info.name, output.offset + done, data);
    source.file->release(window);
    done += window.bytes;
    progress.advance(window.bytes * job.outputs.size());
  }
}

void compute_piece(const Placed& output, OpenShards& shards, Progress& progress) {
  check_interrupt();
  std::vector<std::byte> bytes(output.piece->bytes);
  output.piece->compute(bytes);
  for (uint64_t done = 0; done < bytes.size(); done += kPieceBytes) {
    check_interrupt();
    const uint64_t piece = std::min<uint64_t>(kPieceBytes, bytes.size() - done);
    shards.write(output.tensor->info.name, output.offset + done, std::span(bytes).subspan(done, piece));
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

OutputTensor copied_tensor(io::TensorInfo info, const io::Checkpoint::Entry& source) {
  std::vector<OutputPiece> pieces(1);
  pieces[0] = {.bytes = info.bytes, .file = source.file, .offset = source.info->offset, .compute = {}};
  return {std::move(info), std::move(pieces)};
}

OutputTensor computed_tensor(io::TensorInfo info, std::function<void(std::span<std::byte>)> compute) {
  std::vector<OutputPiece> pieces(1);
  pieces[0] = {.bytes = info.bytes, .compute = std::move(compute)};
  return {std::move(info), std::move(pieces)};
}

uint64_t total_bytes(const std::vector<io::TensorInfo>& tensors) {
  uint64_t bytes = 0;
  for (const io::TensorInfo& info : tensors) bytes += info.bytes;
  return bytes;
}

std::vector<io::TensorInfo> infos_of(std::span<const OutputTensor> tensors) {
  std::vector<io::TensorInfo> infos;
  infos.reserve(tensors.size());
  for (const OutputTensor& tensor : tensors) infos.push_back(tensor.info);
  return infos;
}

io::ShardPlan plan_output(std::vector<io::TensorInfo> tensors, uint64_t max_shard_bytes, std::string_view stem) {
  io::ShardPlan plan = io::plan_shards(std::move(tensors), max_shard_bytes, stem);
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
  OpenShards shards(directory, plan, tensors);
  const std::vector<Job> jobs = jobs_of(tensors);
  parallel_for(jobs.size(), threads, [&](size_t index) {
    const Job& job = jobs[index];
    if (job.outputs.front().piece->file != nullptr) {
      copy_source(job, shards, progress);
    } else {
      compute_piece(job.outputs.front(), shards, progress);
    }
    for (const Placed& output : job.outputs) shards.end(output.tensor->info.name);
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
