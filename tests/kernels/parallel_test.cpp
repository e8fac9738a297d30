#include "coppice/kernels/parallel.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <mutex>
#include <set>
#include <thread>

namespace coppice::kernels {
namespace {

std::set<std::thread::id> threads_of_tasks() {
  std::mutex mutex;
  std::set<std::thread::id> out;
  parallel_tasks(64, [&](int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const std::scoped_lock lock(mutex);
    out.insert(std::this_thread::get_id());
  });
  return out;
}

TEST(UseOneThreadHere, LeavesOtherThreadsTheirs) {
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  int of_other = 0;
  size_t tasks_of_other = 0;
  std::thread([&] {
    use_one_thread_here();
    of_other = at::get_num_threads();
    tasks_of_other = threads_of_tasks().size();
  }).join();
  EXPECT_EQ(of_other, 1);
  EXPECT_EQ(tasks_of_other, 1u);
  EXPECT_EQ(at::get_num_threads(), 3);
  EXPECT_GT(threads_of_tasks().size(), 1u);
  int of_next = 0;
  std::thread([&] { of_next = at::get_num_threads(); }).join();
  EXPECT_EQ(of_next, 3) << "the number of the process";
  at::set_num_threads(before);
}

}  // namespace
}  // namespace coppice::kernels
