#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <utility>
#include <vector>

namespace coppice::io {

/// The sizes of a tensor, used as a std::vector<int64_t> is.
///
/// Memory   24 bytes, and a block of the heap for more than two dimensions.
class TensorShape {
 public:
  TensorShape() = default;
  TensorShape(std::initializer_list<int64_t> sizes) : TensorShape(std::span(sizes.begin(), sizes.size())) {}
  TensorShape(const std::vector<int64_t>& sizes) : TensorShape(std::span(sizes)) {}
  explicit TensorShape(std::span<const int64_t> sizes) : size_(sizes.size()) {
    if (size_ > kInline) words_[0] = std::bit_cast<int64_t>(new int64_t[size_]);
    std::ranges::copy(sizes, data());
  }
  TensorShape(const TensorShape& other) : TensorShape(std::span<const int64_t>(other.data(), other.size_)) {}
  TensorShape(TensorShape&& other) noexcept { swap(other); }
  TensorShape& operator=(TensorShape other) noexcept {
    swap(other);
    return *this;
  }
  ~TensorShape() {
    if (size_ > kInline) delete[] data();
  }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int64_t* data() { return size_ > kInline ? std::bit_cast<int64_t*>(words_[0]) : words_; }
  const int64_t* data() const { return size_ > kInline ? std::bit_cast<const int64_t*>(words_[0]) : words_; }
  int64_t* begin() { return data(); }
  int64_t* end() { return data() + size_; }
  const int64_t* begin() const { return data(); }
  const int64_t* end() const { return data() + size_; }
  int64_t& operator[](size_t i) { return data()[i]; }
  int64_t operator[](size_t i) const { return data()[i]; }
  int64_t& at(size_t i) { return data()[checked(i)]; }
  int64_t at(size_t i) const { return data()[checked(i)]; }
  int64_t& front() { return at(0); }
  int64_t front() const { return at(0); }
  int64_t& back() { return at(size_ - 1); }
  int64_t back() const { return at(size_ - 1); }

  operator std::vector<int64_t>() const { return {begin(), end()}; }
  friend bool operator==(const TensorShape& a, const TensorShape& b) { return std::ranges::equal(a, b); }

 private:
  static constexpr size_t kInline = 2;

  size_t checked(size_t i) const;  // Error{kInternal} past the end
  void swap(TensorShape& other) noexcept {
    std::swap(size_, other.size_);
    std::swap(words_, other.words_);
  }

  size_t size_ = 0;
  int64_t words_[kInline] = {};  // the sizes; of more dimensions the address of their block
};

}  // namespace coppice::io
