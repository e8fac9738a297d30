// adamw [MILLION_PARAMETERS]: bytes a second of the optimizer's step beside those of a plain copy on the same threads. Prints Markdown.
// A copy moves every byte twice, once read and once written; a step reads and writes master and moments, reads the gradient and
// writes the bf16 weight.

#include "coppice/kernels/adamw.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <iostream>
#include <vector>

#include "coppice/base/text.h"
#include "coppice/kernels/parallel.h"

namespace {

using namespace coppice;

constexpr int kWarmUp = 2, kRepeats = 9;

double median_seconds(const std::function<void()>& work) {
  std::vector<double> seconds;
  for (int i = 0; i < kWarmUp + kRepeats; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    work();
    if (i >= kWarmUp)
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::ranges::sort(seconds);
  return seconds[kRepeats / 2];
}

double copy_bytes_a_second(int64_t bytes) {
  const at::Tensor from = at::full({bytes}, 1, at::kChar), to = at::full({bytes}, 2, at::kChar);
  const auto* const source = from.const_data_ptr<int8_t>();
  auto* const target = to.mutable_data_ptr<int8_t>();
  const int64_t share = bytes / at::get_num_threads();
  const double seconds = median_seconds([&] {
    kernels::parallel_ranges(bytes, share, [&](int64_t begin, int64_t end) {
      std::memcpy(target + begin, source + begin, static_cast<size_t>(end - begin));
    });
  });
  return 2 * static_cast<double>(bytes) / seconds;
}

double adamw_bytes_a_second(int64_t parameters, at::ScalarType moments, at::ScalarType gradient) {
  const at::Tensor master = at::rand({parameters}), grad = at::rand({parameters}, gradient),
                   value = at::empty({parameters}, at::kBFloat16), exp_avg = at::full({parameters}, 0.1, moments),
                   exp_avg_sq = at::full({parameters}, 0.1, moments);
  kernels::AdamwPart all{
      .master = master, .exp_avg = exp_avg, .exp_avg_sq = exp_avg_sq, .grad = grad, .value = value, .step = 0};
  const double seconds = median_seconds([&] {
    ++all.step;
    kernels::adamw_step({&all, 1}, 1.0, {});
  });
  const size_t moved = 2 * (master.nbytes() + exp_avg.nbytes() + exp_avg_sq.nbytes()) + grad.nbytes() + value.nbytes();
  return static_cast<double>(moved) / seconds;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t parameters = (argc > 1 ? std::atoll(argv[1]) : 64) * 1'000'000;
  if (parameters < 1) {
    std::cerr << "usage: adamw [MILLION_PARAMETERS]\n";
    return 2;
  }
  const double copy = copy_bytes_a_second(8 * parameters);
  std::cout << parameters / 1'000'000 << " million parameters, " << at::get_num_threads() << " threads\n\n"
            << "| | GB/s | of the copy |\n|---|---:|---:|\n"
            << cat("| copy | ", fixed_text(copy / 1e9, 1), " | |\n");
  for (const auto& [name, moments, gradient] : {std::tuple{"AdamW, f32 moments, f32 gradient", at::kFloat, at::kFloat},
                                                {"AdamW, f32 moments, bf16 gradient", at::kFloat, at::kBFloat16},
                                                {"AdamW, bf16 moments, bf16 gradient", at::kBFloat16, at::kBFloat16}}) {
    const double rate = adamw_bytes_a_second(parameters, moments, gradient);
    std::cout << cat("| ", name, " | ", fixed_text(rate / 1e9, 1), " | ", fixed_text(rate / copy, 2), " x |\n");
  }
  return 0;
}
