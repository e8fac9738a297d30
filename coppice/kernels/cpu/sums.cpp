#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <span>
#include <vector>

#include "coppice/base/lane_sum.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/parallel.h"
#include "coppice/kernels/sums_detail.h"

namespace coppice::kernels::cpu {
namespace {

constexpr int64_t kBlock = int64_t{1} << 16;

template <class T>
double block_sum(const T* x, int64_t count) {
  return lane_sum<double>(count, [x](int64_t i) {
    const auto value = static_cast<double>(load(x[i]));
    return value * value;
  });
}

}  // namespace

at::Tensor sum_of_squares(std::span<const at::Tensor> values) {
  struct Block {
    const at::Tensor* of;
    int64_t begin;
    double sum;
  };
  std::vector<Block> blocks;
  for (const at::Tensor& one : values) {
    for (int64_t begin = 0; begin < one.numel(); begin += kBlock) blocks.push_back({&one, begin, 0.0});
  }
  // As many blocks a task as make one large block.
  std::vector<size_t> tasks;  // the first block of each
  int64_t room = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int64_t size = std::min(kBlock, blocks[i].of->numel() - blocks[i].begin);
    if (tasks.empty() || size > room) {
      tasks.push_back(i);
      room = kBlock;
    }
    room -= size;
  }
  parallel_tasks(std::ssize(tasks), [&](int64_t task) {
    const auto at = static_cast<size_t>(task), end = at + 1 < tasks.size() ? tasks[at + 1] : blocks.size();
    for (size_t i = tasks[at]; i < end; ++i) {
      auto& [of, begin, sum] = blocks[i];
      with_scalar(*of, [&]<class T>(T) {
        sum = block_sum(of->const_data_ptr<T>() + begin, std::min(kBlock, of->numel() - begin));
      });
    }
  });
  // By tensors first: the sum of several is that of their sums.
  double total = 0;
  for (size_t i = 0; i < blocks.size();) {
    double of_one = 0;
    for (const at::Tensor* const one = blocks[i].of; i < blocks.size() && blocks[i].of == one; ++i) {
      of_one += blocks[i].sum;
    }
    total += of_one;
  }
  return at::full({}, total, values.front().options().dtype(at::kDouble));
}

at::Tensor expert_dot(const at::Tensor& a, const at::Tensor& b) {
  const int64_t experts = a.size(0);
  const auto size = static_cast<size_t>(a.numel() / experts);
  const auto out_E = at::empty({experts}, a.options().dtype(at::kDouble));
  auto* const out = out_E.mutable_data_ptr<double>();
  parallel_tasks(experts, [&](int64_t expert) {
    const auto e = static_cast<size_t>(expert);
    const auto values = [&](const at::Tensor& t) { return std::span(t.const_data_ptr<float>() + e * size, size); };
    out[e] = dot(values(a), values(b));
  });
  return out_E;
}

}  // namespace coppice::kernels::cpu
