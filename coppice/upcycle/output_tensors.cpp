#include "coppice/upcycle/output_tensors.h"

#include <functional>
#include <map>
#include <utility>

#include "coppice/base/check.h"

namespace coppice::upcycle {

io::TensorInfo tensor_info(std::string name, io::Dtype dtype, std::vector<int64_t> shape) {
  io::TensorInfo info;
  info.name = std::move(name);
  info.dtype = dtype;
  info.shape = std::move(shape);
  info.bytes = static_cast<uint64_t>(info.elements()) * static_cast<uint64_t>(io::dtype_bits(dtype)) / 8;
  return info;
}

void OutputPiece::fill(uint64_t skip, std::span<std::byte> out) const {
  file != nullptr ? file->read(offset + skip, out) : compute(skip, out);
}

OutputTensor copied_tensor(io::TensorInfo info, const io::Checkpoint::Entry& source) {
  std::vector<OutputPiece> pieces(1);
  pieces[0] = {.bytes = info.bytes, .file = source.file, .offset = source.info->offset, .compute = {}};
  return {std::move(info), std::move(pieces)};
}

OutputTensor computed_tensor(io::TensorInfo info, std::function<void(std::span<std::byte>)> compute) {
  std::vector<OutputPiece> pieces(1);
  pieces[0] = {.bytes = info.bytes,
               .compute = [compute = std::move(compute)](uint64_t, std::span<std::byte> out) { compute(out); }};
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
