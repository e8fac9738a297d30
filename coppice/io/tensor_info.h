#pragma once

// What a checkpoint says of a tensor: name, shape, dtype and place.

#include <algorithm>
#include <atomic>
#include <bit>
#include <compare>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "coppice/io/dtype.h"

namespace coppice::io {

/// A text that does not change and is shared by its copies: the name of a tensor, which headers, tables and plans all
/// hold.
///
/// Memory   a pointer for each copy; the text once.
/// Threads  copies of one name may be made and destroyed by any thread.
class TensorName {
 public:
  TensorName() = default;
  template <class Text>
    requires(std::convertible_to<const Text&, std::string_view> && !std::same_as<Text, TensorName>)
  TensorName(const Text& text) : text_(make(text)) {}
  TensorName(const TensorName& other) : text_(other.text_) {
    if (text_ != nullptr) text_->owners.fetch_add(1, std::memory_order_relaxed);
  }
  TensorName(TensorName&& other) noexcept : text_(std::exchange(other.text_, nullptr)) {}
  TensorName& operator=(TensorName other) noexcept {
    std::swap(text_, other.text_);
    return *this;
  }
  ~TensorName() {
    if (text_ != nullptr && text_->owners.fetch_sub(1, std::memory_order_acq_rel) == 1) destroy(text_);
  }

  std::string_view view() const {
    return text_ == nullptr ? std::string_view()
                            : std::string_view(reinterpret_cast<const char*>(text_ + 1), text_->size);
  }
  std::string str() const { return std::string(view()); }
  operator std::string_view() const { return view(); }
  operator std::string() const { return str(); }

  size_t size() const { return view().size(); }
  bool empty() const { return text_ == nullptr; }
  bool starts_with(std::string_view text) const { return view().starts_with(text); }
  bool ends_with(std::string_view text) const { return view().ends_with(text); }
  size_t find(std::string_view text, size_t from = 0) const { return view().find(text, from); }

  friend bool operator==(const TensorName& a, const TensorName& b) {
    return a.text_ == b.text_ || a.view() == b.view();
  }
  friend auto operator<=>(const TensorName& a, const TensorName& b) { return a.view() <=> b.view(); }
  template <class Text>
    requires(std::convertible_to<const Text&, std::string_view> && !std::same_as<Text, TensorName>)
  friend bool operator==(const TensorName& a, const Text& b) {
    return a.view() == std::string_view(b);
  }
  friend std::string operator+(const TensorName& a, std::string_view b) { return a.str().append(b); }
  friend std::ostream& operator<<(std::ostream& out, const TensorName& name) { return out << name.view(); }

 private:
  struct Text {  // its characters follow it
    std::atomic<uint32_t> owners;
    uint32_t size;
  };

  static Text* make(std::string_view text);
  static void destroy(Text* text);

  Text* text_ = nullptr;  // none: the empty text
};

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

/// Memory   about 60 bytes; the name's text is shared by copies.
struct TensorInfo {
  TensorName name;
  Dtype dtype = Dtype::kF32;
  TensorShape shape;
  uint64_t offset = 0;  ///< bytes from the start of the file's data section
  uint64_t bytes = 0;

  int64_t elements() const;
  bool operator==(const TensorInfo&) const = default;
};

}  // namespace coppice::io
