#pragma once

// Memory for the numbers of one task.

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace coppice::kernels::cpu {

/// Uninitialised numbers, aligned to a cache line: a load of a whole line that crosses into the next one takes twice as
/// long.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  std::unique_ptr<T, Free> data_;
};

}  // namespace coppice::kernels::cpu
