// moe_layer TOKENS DIM EXPERTS TOP_K WIDTH fast|reference [cpu|cuda]: forward and backward of one MoE layer in bf16 on random
// tokens and random experts; prints {"seconds": median of the repeats, "kept_bytes": what the forward pass leaves in memory for
// the backward pass, its output apart, "peak_bytes": of device memory}. bench/moe_cuda.py and moe_memory.py run it beside
// the peers.

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <malloc.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <span>
#include <string>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/kernels/moe.h"

namespace {

using namespace coppice;
using Clock = std::chrono::steady_clock;

constexpr int kWarmUp = 3, kRepeats = 20;

struct Layer {
  std::vector<at::Tensor> leaves;  // x, gate and up, down, gates
  at::Tensor index, grad;

  Layer(std::span<const int64_t> sizes, at::DeviceType device) {
    const int64_t tokens = sizes[0], dim = sizes[1], experts = sizes[2], top_k = sizes[3], width = sizes[4];
    const auto f32 = at::TensorOptions().device(device).dtype(at::kFloat), bf16 = f32.dtype(at::kBFloat16);
    leaves = {at::randn({tokens, dim}, bf16), at::randn({experts, 2 * width, dim}, bf16),
              at::randn({experts, dim, width}, bf16), at::rand({tokens, top_k}, f32)};
    for (at::Tensor& leaf : leaves) leaf.set_requires_grad(true);
    index = at::rand({tokens, experts}, f32).argsort(int64_t{1}).narrow(1, 0, top_k).contiguous();
    grad = at::randn({tokens, dim}, bf16);
  }
  at::Tensor forward(kernels::MoeKernel kernel) const {
    return kernels::moe_experts(leaves[0], leaves[1], leaves[2], index, leaves[3], kernel);
  }
  void step(kernels::MoeKernel kernel) const { (void)torch::autograd::grad({forward(kernel)}, leaves, {grad}); }
};

c10::CachingAllocator::Stat device_bytes() {
  return at::accelerator::getDeviceStats(0)
      .allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
}

size_t bytes_in_use(bool on_gpu) {
  if (on_gpu) return static_cast<size_t>(device_bytes().current);
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

size_t kept_bytes(const Layer& layer, kernels::MoeKernel kernel, bool on_gpu) {
  const size_t before = bytes_in_use(on_gpu);
  const at::Tensor y_TD = layer.forward(kernel);
  return bytes_in_use(on_gpu) - before - y_TD.nbytes();
}

void run(std::span<char*> args) {
  if (args.size() < 7 || args.size() > 8) {
    throw Error(ErrorCode::kUsage, "usage: moe_layer TOKENS DIM EXPERTS TOP_K WIDTH fast|reference [cpu|cuda]");
  }
  std::vector<int64_t> sizes;
  for (size_t i = 1; i < 6; ++i) {
    sizes.push_back(std::atoll(args[i]));
    if (sizes.back() < 1) throw Error(ErrorCode::kUsage, cat("'", args[i], "'; wanted a number above 0"));
  }
  if (sizes[3] > sizes[2]) throw Error(ErrorCode::kUsage, cat("top-", sizes[3], " of ", sizes[2], " experts"));
  const auto kernel = args[6] == std::string("reference") ? kernels::MoeKernel::kReference : kernels::MoeKernel::kFast;
  const bool on_gpu = args.size() < 8 || args[7] == std::string("cuda");
  if (on_gpu && !at::hasCUDA()) {
    throw Error(ErrorCode::kUnsupported,
                "no GPU, or a build without CUDA (build with the preset `cuda` where there is one)");
  }
  const Layer layer(sizes, on_gpu ? at::kCUDA : at::kCPU);
  std::vector<double> seconds;
  for (int i = 0; i < kWarmUp + kRepeats; ++i) {
    const auto begin = Clock::now();
    layer.step(kernel);
    if (on_gpu) at::accelerator::synchronizeDevice(0);
    if (i >= kWarmUp) seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  std::ranges::sort(seconds);
  std::cout << cat("{\"seconds\": ", seconds[kRepeats / 2], ", \"kept_bytes\": ", kept_bytes(layer, kernel, on_gpu),
                   ", \"peak_bytes\": ", on_gpu ? device_bytes().peak : 0, "}\n");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    run({argv, static_cast<size_t>(argc)});
    return 0;
  } catch (const Error& error) {
    std::cerr << "moe_layer: " << error.what() << '\n';
    return exit_status(error.code);
  } catch (const c10::Error& error) {
    std::cerr << "moe_layer: " << error.what_without_backtrace() << '\n';
    return exit_status(ErrorCode::kInternal);
  }
}
