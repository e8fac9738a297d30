// paths [bf16|f32]: the CPU's ways to compute the MoE layer and attention (coppice/kernels/cpu/processor_detail.h), forward
// and backward, beside each other on the same numbers: GFLOP/s, the best of some runs in turn. Prints Markdown; the way that
// coppice takes on this processor stands in the last column.

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#include "coppice/base/memory.h"
#include "coppice/base/text.h"
#include "coppice/kernels/cpu/attention_variants_detail.h"
#include "coppice/kernels/cpu/lanes_detail.h"
#include "coppice/kernels/cpu/moe_rows_detail.h"
#include "coppice/kernels/cpu/processor_detail.h"

namespace {

using namespace coppice;
using namespace coppice::kernels;
using cpu::Path;

constexpr int kRepeats = 7;

struct Way {
  Path path;
  std::function<void()> run;
  double seconds = 1e9;
};

const char* name_of(Path path) {
  switch (path) {
    case Path::kLibtorch: return "libtorch";
    case Path::kWords: return "words";
    case Path::kTiles: return "tiles";
    case Path::kLanes: return "lanes";
  }
  return "";
}

/// The ways run in turn, so that what else happens on the machine meets all of them.
void measure(std::vector<Way>& ways) {
  for (int i = 0; i < kRepeats; ++i) {
    for (Way& way : ways) {
      const auto begin = std::chrono::steady_clock::now();
      way.run();
      way.seconds =
          std::min(way.seconds, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
  }
}

void print_row(const std::string& shape, std::vector<Way> ways, double flops, Path taken) {
  measure(ways);
  std::cout << "| " << shape;
  for (const Path path : {Path::kLibtorch, Path::kWords, Path::kTiles, Path::kLanes}) {
    const auto way = std::ranges::find(ways, path, &Way::path);
    std::cout << " | " << (way == ways.end() ? "" : fixed_text(flops / way->seconds / 1e9, 0));
  }
  std::cout << " | " << name_of(taken) << " |" << std::endl;
}

void print_head(const std::string& shape) {
  std::cout << "\n| " << shape << " | libtorch | words | tiles | lanes | taken |\n|---|---:|---:|---:|---:|---|\n";
}

void experts(at::ScalarType dtype, int64_t tokens, int64_t dim, int64_t experts, int64_t top_k, int64_t width) {
  const auto numbers = at::TensorOptions().dtype(dtype);
  const auto index_TK = at::rand({tokens, experts}).argsort(int64_t{1}).narrow(1, 0, top_k).contiguous();
  const kernels::detail::MoeInputs in{
      at::randn({tokens, dim}, numbers), at::randn({experts, 2 * width, dim}, numbers) * 0.1,
      at::randn({experts, dim, width}, numbers) * 0.1, index_TK, at::rand({tokens, top_k})};
  const auto grad = at::randn({tokens, dim}, numbers);
  std::vector<Way> ways;
  const auto add = [&](Path path, const kernels::detail::MoeVariant& variant) {
    ways.push_back({path, [&] { (void)variant.backward(in, variant.forward(in), grad); }});
  };
  const cpu::Processor& processor = cpu::this_processor();
  add(Path::kLibtorch, cpu::kExpertsByGemms);
  if (has_words(processor, dtype)) add(Path::kWords, cpu::kExpertsByWords);
  if (has_tiles(processor, dtype)) add(Path::kTiles, cpu::kExpertsByTiles);
  const cpu::ExpertsShape shape{
      .pairs = tokens * top_k, .experts = experts, .dim = dim, .width = width, .is_plain = true};
  print_row(cat(tokens, ", ", dim, ", ", experts, ", ", top_k, ", ", width), ways,
            18.0 * static_cast<double>(tokens * top_k * dim * width), cpu::pick_experts(processor, shape, dtype));
}

void attention(at::ScalarType dtype, int64_t sequences, int64_t positions, int64_t heads, int64_t key_heads,
               int64_t dim) {
  const auto of = [&](int64_t count) {
    return at::randn({sequences, positions, count, dim}, at::TensorOptions().dtype(dtype));
  };
  const kernels::detail::AttentionInputs in{of(heads), of(key_heads), of(key_heads), 0.1};
  const auto grad = of(heads);
  std::vector<Way> ways{{Path::kLibtorch, [&] {
                           std::vector<at::Tensor> leaves;
                           for (const auto* x : {&in.query_BSHC, &in.key_BSJC, &in.value_BSJC}) {
                             leaves.push_back(x->detach().requires_grad_(true));
                           }
                           const at::AutoGradMode with_gradients(true);
                           const auto out = aten::plain_attention({leaves[0], leaves[1], leaves[2], in.scale});
                           (void)torch::autograd::grad({out}, leaves, {grad});
                         }}};
  const auto add = [&](Path path, const kernels::detail::AttentionVariant& variant) {
    ways.push_back({path, [&] { (void)variant.backward(in, variant.forward(in), grad); }});
  };
  const cpu::Processor& processor = cpu::this_processor();
  const bool in_blocks = positions % 32 == 0 && dim % 32 == 0;
  if (in_blocks && has_words(processor, dtype)) add(Path::kWords, cpu::kAttentionByWords);
  if (in_blocks && has_tiles(processor, dtype)) add(Path::kTiles, cpu::kAttentionByTiles);
  if (dim <= 32 && positions <= 512) add(Path::kLanes, cpu::lanes_of(processor).attention);
  const cpu::AttentionShape shape{.positions = positions, .heads = heads, .key_heads = key_heads, .dim = dim};
  // Half of the pairs of a query and a key; two products forward, five backward.
  print_row(cat(sequences, ", ", positions, ", ", heads, ", ", key_heads, ", ", dim), ways,
            7.0 * static_cast<double>(sequences * heads * positions * positions * dim),
            cpu::pick_attention(processor, shape, dtype));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2 || (argc == 2 && argv[1] != std::string("bf16") && argv[1] != std::string("f32"))) {
    std::cerr << "usage: paths [bf16|f32]\n";
    return 2;
  }
  const auto dtype = argc == 2 && argv[1] == std::string("f32") ? at::kFloat : at::kBFloat16;
  keep_freed_memory();
  const at::NoGradGuard no_grad;
  std::cout << at::get_num_threads() << " threads, " << (dtype == at::kFloat ? "f32" : "bf16") << ", GFLOP/s\n";
  print_head("MoE layer: tokens, D, E, K, F");
  for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64}) experts(dtype, rows * 8, 256, 64, 8, 256);
  experts(dtype, 2048, 256, 32, 4, 256);
  experts(dtype, 2048, 256, 64, 8, 256);
  experts(dtype, 2048, 256, 256, 8, 256);
  experts(dtype, 1024, 1024, 16, 4, 768);
  experts(dtype, 1024, 2048, 16, 2, 768);
  experts(dtype, 4096, 2048, 16, 2, 1024);
  print_head("attention: sequences, positions, heads, key heads, head dimension");
  attention(dtype, 8, 256, 4, 4, 16);
  attention(dtype, 8, 256, 8, 8, 32);
  attention(dtype, 2, 1024, 8, 2, 32);
  attention(dtype, 4, 256, 8, 8, 64);
  attention(dtype, 2, 1024, 8, 2, 64);
  attention(dtype, 2, 512, 16, 4, 128);
  attention(dtype, 1, 2048, 8, 2, 128);
  return 0;
}
