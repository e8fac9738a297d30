#pragma once

#include <atomic>
#include <compare>
#include <concepts>
#include <cstdint>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>

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

}  // namespace coppice::io
