// The pieces of the MoE layer on a GPU. They use no atomics, so the bits do not depend on scheduling.

#include <cuda_runtime_api.h>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/kernels/cuda/sorted_rows_pieces_detail.h"

namespace coppice::kernels::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int64_t kMostBlocks = 1 << 20;  // each block continues in strides

template <class Piece>
__global__ void __launch_bounds__(kThreads) run_pieces(int64_t count, Piece piece) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count; i += stride) piece(i);
}

/// One warp per row, so that neighbours in a row are read together and no index is divided.
template <class Piece>
__global__ void __launch_bounds__(kThreads) run_packs(int64_t rows, int64_t packs, Piece piece) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; row < rows; row += stride) {
    for (int64_t pack = threadIdx.x; pack < packs; pack += kWarp) piece(row, pack);
  }
}

template <class Piece>
__global__ void __launch_bounds__(kRowLanes) run_rows(int64_t rows, Piece piece) {
  __shared__ float lanes[kRowLanes];
  const int lane = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    lanes[lane] = piece(row, lane);
    for (int half = kRowLanes / 2; half > 0; half /= 2) {
      __syncthreads();
      add_upper_half(lanes, lane, half);
    }
    if (lane == 0) piece.finish(row, lanes[0]);
    __syncthreads();  // before the next row uses the lanes
  }
}

int blocks_for(int64_t count) { return static_cast<int>(count < kMostBlocks ? count : kMostBlocks); }

void check_started() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return;
  throw Error(ErrorCode::kIo, cat("CUDA: a kernel did not start: ", cudaGetErrorString(error),
                                  " (check that coppice was built for this GPU: COPPICE_CUDA_ARCHITECTURES)"));
}

}  // namespace

template <class Piece>
void OnDevice::each(int64_t count, const Piece& piece) const {
  if (count == 0) return;
  const int blocks = blocks_for((count + kThreads - 1) / kThreads);
  run_pieces<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(count, piece);
  check_started();
}

template <class Piece>
void OnDevice::each_pack(int64_t rows, int64_t packs, const Piece& piece) const {
  if (rows == 0) return;
  constexpr int kRowsABlock = kThreads / kWarp;
  const dim3 threads(kWarp, kRowsABlock);
  run_packs<<<blocks_for((rows + kRowsABlock - 1) / kRowsABlock), threads, 0, static_cast<cudaStream_t>(stream)>>>(
      rows, packs, piece);
  check_started();
}

template <class Piece>
void OnDevice::each_row(int64_t rows, const Piece& piece) const {
  if (rows == 0) return;
  run_rows<<<blocks_for(rows), kRowLanes, 0, static_cast<cudaStream_t>(stream)>>>(rows, piece);
  check_started();
}

template class SortedRows<OnDevice, float>;
template class SortedRows<OnDevice, Bf16>;

}  // namespace coppice::kernels::cuda
