#pragma once

// A list of tensors to be written, with the sources of their bytes. write_output.h writes them.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "coppice/io/checkpoint.h"
#include "coppice/matrix/matrices_bytes.h"

namespace coppice::output {

struct OutputPiece;

/// Computes pieces, each identified by a number. Large models have hundreds of thousands of them, so the inputs of a
/// piece are prepared when its first bytes are requested and released after its last.
///
/// Threads  any.
class PieceMaker {
 public:
  /// Fills `out` with the piece's bytes from `offset` on; called from any thread; each byte is requested once.
  using Fill = matrix::BytesFill;

  PieceMaker() = default;
  PieceMaker(const PieceMaker&) = delete;
  PieceMaker& operator=(const PieceMaker&) = delete;
  virtual ~PieceMaker() = default;

  void fill(const OutputPiece& piece, uint64_t skip, std::span<std::byte> out) const;

 private:
  struct Begun;

  virtual Fill make(uint64_t number) const = 0;

  mutable std::mutex mutex_;
  mutable std::map<uint64_t, std::shared_ptr<Begun>> begun_;  // by number: pieces of which some bytes are computed
};

/// Consecutive bytes of an output tensor: bytes of a source tensor, or computed.
struct OutputPiece {
  uint64_t bytes = 0;
  const io::SafetensorsFile* file = nullptr;     ///< copied from this file, if set ...
  uint64_t offset = 0;                           ///< ... at this offset from the start of its data section
  std::shared_ptr<const PieceMaker> maker = {};  ///< otherwise computed by this maker ...
  uint64_t number = 0;                           ///< ... under this number
  bool cuttable = false;                         ///< any range of bytes can be computed alone; otherwise all at once
  /// If not 0: computed, divisible pieces with the same identity have the same bytes, which are computed once.
  uint64_t identity = 0;

  /// Fills `out` with the piece's bytes from `skip` on.
  void fill(uint64_t skip, std::span<std::byte> out) const;
};

/// One tensor to be written; its pieces are consecutive.
struct OutputTensor {
  io::TensorInfo info;  ///< name, dtype, shape, bytes; the offset is set when written
  std::vector<OutputPiece> pieces;
};
OutputTensor copied_tensor(io::TensorInfo info, const io::Checkpoint::Entry& source);
OutputTensor computed_tensor(io::TensorInfo info, std::function<void(std::span<std::byte>)> compute);

/// A piece with its own maker, for tensors that are few.
OutputPiece computed_piece(uint64_t bytes, std::function<PieceMaker::Fill()> make, bool cuttable = false);

/// A piece of matrices, as MatricesBytes makes them. It can be divided if rows of the matrices can be computed in any
/// order (`by_rows`).
OutputPiece matrices_piece(std::vector<models::ExpertMatrix> places, io::Dtype dtype, bool by_rows,
                           std::function<std::vector<matrix::MatrixRows>()> prepare);

/// A TensorInfo with its byte count.
io::TensorInfo tensor_info(io::TensorName name, io::Dtype dtype, io::TensorShape shape);

uint64_t total_bytes(const std::vector<io::TensorInfo>& tensors);
std::vector<io::TensorInfo> infos_of(std::span<const OutputTensor> tensors);

/// Splits `tensors`, in order, into shards (io::lay_out_shards). Within a shard wider dtypes come first, so that every
/// tensor is aligned.
io::ShardLayout plan_output(std::vector<io::TensorInfo> tensors, uint64_t max_shard_bytes, std::string_view stem);

/// The shards of an optimizer state, with the names that families::OptimizerState requires even if there is only one.
io::ShardLayout plan_optimizer_shards(std::vector<io::TensorInfo> tensors, uint64_t max_shard_bytes);

}  // namespace coppice::output
