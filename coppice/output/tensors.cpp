#include "coppice/output/tensors.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "coppice/base/check.h"

namespace coppice::output {

io::TensorInfo tensor_info(io::TensorName name, io::Dtype dtype, io::TensorShape shape) {
  io::TensorInfo info;
  info.name = std::move(name);
  info.dtype = dtype;
  info.shape = std::move(shape);
  info.bytes = static_cast<uint64_t>(info.elements()) * static_cast<uint64_t>(io::dtype_bits(dtype)) / 8;
  return info;
}

struct PieceMaker::Begun {
  std::once_flag once;
  Fill fill;
  uint64_t made = 0;  // protected by the maker's mutex
};

void PieceMaker::fill(const OutputPiece& piece, uint64_t skip, std::span<std::byte> out) const {
  if (out.size() == piece.bytes) return make(piece.number)(0, out);
  std::shared_ptr<Begun> begun;
  {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<Begun>& found = begun_[piece.number];
    if (!found) found = std::make_shared<Begun>();
    begun = found;
  }
  std::call_once(begun->once, [&] { begun->fill = make(piece.number); });
  begun->fill(skip, out);
  const std::lock_guard lock(mutex_);
  begun->made += out.size();
  if (begun->made >= piece.bytes) begun_.erase(piece.number);
}

namespace {

class OnePiece : public PieceMaker {
 public:
  explicit OnePiece(std::function<Fill()> make) : make_(std::move(make)) {}

 private:
  Fill make(uint64_t) const override { return make_(); }

  std::function<Fill()> make_;
};

}  // namespace

OutputPiece computed_piece(uint64_t bytes, std::function<PieceMaker::Fill()> make, bool cuttable) {
  return {.bytes = bytes, .maker = std::make_shared<OnePiece>(std::move(make)), .cuttable = cuttable};
}

OutputPiece matrices_piece(std::vector<models::ExpertMatrix> places, io::Dtype dtype, bool by_rows,
                           std::function<std::vector<matrix::MatrixRows>()> prepare) {
  const uint64_t bytes = matrix::matrices_bytes(places, dtype);
  const bool cuttable = matrix::matrices_cuttable(places, by_rows);
  const auto make = [places = std::move(places), dtype, prepare = std::move(prepare)] {
    return matrix::matrices_fill(places, dtype, prepare);
  };
  return computed_piece(bytes, make, cuttable);
}

void OutputPiece::fill(uint64_t skip, std::span<std::byte> out) const {
  file != nullptr ? file->read(offset + skip, out) : maker->fill(*this, skip, out);
}

OutputTensor copied_tensor(io::TensorInfo info, const io::Checkpoint::Entry& source) {
  std::vector<OutputPiece> pieces(1);
  pieces[0] = {.bytes = info.bytes, .file = source.file, .offset = source.info->offset};
  return {std::move(info), std::move(pieces)};
}

OutputTensor computed_tensor(io::TensorInfo info, std::function<void(std::span<std::byte>)> compute) {
  PieceMaker::Fill fill = [compute = std::move(compute)](uint64_t, std::span<std::byte> out) { compute(out); };
  const uint64_t bytes = info.bytes;
  return {std::move(info), {computed_piece(bytes, [fill] { return fill; })}};
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

io::ShardLayout plan_output(std::vector<io::TensorInfo> tensors, uint64_t max_shard_bytes, std::string_view stem) {
  io::ShardLayout plan = io::lay_out_shards(std::move(tensors), max_shard_bytes, stem);
  for (io::ShardLayout::Shard& shard : plan.shards) {
    const auto bits = [](const io::TensorInfo& info) { return io::dtype_bits(info.dtype); };
    if (std::ranges::is_sorted(shard.tensors, std::greater<>(), bits)) continue;
    std::ranges::stable_sort(shard.tensors, std::greater<>(), bits);  // equal widths keep their order
  }
  return plan;
}

io::ShardLayout plan_optimizer_shards(std::vector<io::TensorInfo> tensors, uint64_t max_shard_bytes) {
  constexpr std::string_view kStem = "optimizer";
  io::ShardLayout plan = plan_output(std::move(tensors), max_shard_bytes, kStem);
  for (size_t i = 0; i < plan.shards.size(); ++i)
    plan.shards[i].file = io::shard_name(kStem, i + 1, plan.shards.size());
  return plan;
}

}  // namespace coppice::output
