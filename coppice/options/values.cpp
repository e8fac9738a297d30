#include <charconv>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/options/options.h"

namespace coppice::detail {
namespace {

template <class T>
void read_number(T& out, const std::string& text, std::string_view wanted) {
  T value{};
  const char* const end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, value);
  if (result.ec != std::errc() || result.ptr != end)
    throw Error(ErrorCode::kUsage, cat("found '", text, "'; wanted ", wanted));
  out = value;
}

}  // namespace

void read_scalar(std::string& out, const std::string& text) { out = text; }

void read_scalar(std::filesystem::path& out, const std::string& text) { out = text; }

void read_scalar(bool& out, const std::string& text) {
  if (text != "true" && text != "false")
    throw Error(ErrorCode::kUsage, cat("found '", text, "'; wanted true or false"));
  out = text == "true";
}

void read_scalar(int& out, const std::string& text) { read_number(out, text, "an integer of 32 bits"); }

void read_scalar(int64_t& out, const std::string& text) { read_number(out, text, "an integer of 64 bits"); }

void read_scalar(uint64_t& out, const std::string& text) { read_number(out, text, "an integer of 64 bits, 0 or more"); }

void read_scalar(double& out, const std::string& text) {
  double value = 0;
  read_number(value, text, "a finite number");
  if (!std::isfinite(value)) throw Error(ErrorCode::kUsage, cat("found '", text, "'; wanted a finite number"));
  out = value;
}

}  // namespace coppice::detail
