#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "coppice/kernels/cpu/lanes_detail.h"
#include "coppice/kernels/cpu/processor_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kBlock = 32;  // words and panels come in blocks of so many

// `bench/paths` measures the ways (bench/results/train.md): in bf16 tiles were the fastest for all its shapes, from one row
// an expert and heads of 32 on. In f32 on a Xeon MKL's products were 1.1 to 1.6 times as fast as words for experts.
// On a Xeon without tiles f32 products of widened bf16 were 1.1 to 1.8 times as fast as words from 64 rows an expert on;
// with fewer rows widening the weights takes longer than it gains.
constexpr int64_t kManyRows = 64;
constexpr int64_t kNarrowHead = 32;
// On a Xeon lanes took less time for a step of training with D = 64, F = 32 and heads of 16 than libtorch's attention and
// experts in words.
constexpr int64_t kNarrowDim = 128;
constexpr int64_t kShortSequence = 512;  // for lanes

/// Whether all products of the layer have at most 128 columns, in whole vectors of lanes.
bool is_narrow(const ExpertsShape& shape) {
  return shape.is_plain && shape.dim <= kNarrowDim && 2 * shape.width <= kNarrowDim && shape.dim % kNarrowLanes == 0 &&
         shape.width % kNarrowLanes == 0;
}

/// Linux gives a process the tiles' registers only if it asks.
bool may_use_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool has_amx_bf16() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (d & kAmxBf16) != 0 && (d & kAmxTile) != 0 && may_use_tiles();
}

bool fits_lanes(const AttentionShape& shape, at::ScalarType dtype) {
  const bool has_dtype = dtype == at::kFloat || dtype == at::kBFloat16;
  return has_dtype && shape.dim % kNarrowLanes == 0 && shape.dim <= kNarrowHead && shape.positions <= kShortSequence;
}

}  // namespace

const Processor& this_processor() {
  static const Processor processor = [] {
    Processor p;
    p.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    p.avx512_bf16 = p.avx512 && __builtin_cpu_supports("avx512bf16");
    p.amx_bf16 = p.avx512_bf16 && has_amx_bf16();
    p.intel = __builtin_cpu_is("intel");
    return p;
  }();
  return processor;
}

bool has_words(const Processor& processor, at::ScalarType dtype) {
  return dtype == at::kFloat ? processor.avx512 : dtype == at::kBFloat16 && processor.avx512_bf16;
}

bool has_tiles(const Processor& processor, at::ScalarType dtype) {
  return dtype == at::kBFloat16 && processor.amx_bf16;
}

bool has_fast_bf16(const Processor& processor) {
  return processor.amx_bf16 || (processor.avx512_bf16 && !processor.intel);
}

Path pick_experts(const Processor& processor, const ExpertsShape& shape, at::ScalarType dtype) {
  if (is_narrow(shape) && dtype == at::kFloat) return Path::kLanes;
  const bool fits = shape.is_plain && shape.dim % kBlock == 0 && shape.width % kBlock == 0;
  if (!fits || !has_words(processor, dtype)) return Path::kLibtorch;
  if (has_tiles(processor, dtype)) return Path::kTiles;
  if (!processor.intel) return Path::kWords;
  const bool is_worth_widening = shape.pairs >= kManyRows * shape.experts;
  return dtype == at::kFloat || is_worth_widening ? Path::kLibtorch : Path::kWords;
}

Path pick_attention(const Processor& processor, const AttentionShape& shape, at::ScalarType dtype) {
  if (shape.positions == 0 || shape.dim == 0 || shape.heads % shape.key_heads != 0) return Path::kLibtorch;
  const bool slow_words = dtype == at::kBFloat16 && !has_fast_bf16(processor);  // lanes compute in f32
  const bool prefers_lanes = !processor.avx512 || shape.dim < kNarrowHead || slow_words;
  if (prefers_lanes && fits_lanes(shape, dtype)) return Path::kLanes;
  const bool fits = shape.positions % kBlock == 0 && shape.dim % kBlock == 0;
  if (!fits || !has_words(processor, dtype)) return Path::kLibtorch;
  return has_tiles(processor, dtype) ? Path::kTiles : Path::kWords;
}

}  // namespace coppice::kernels::cpu
