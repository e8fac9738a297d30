#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdint>
#include <string>
#include <string_view>
#include <system_error>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice {

/// "5GB" (powers of 1000, as Hugging Face writes it), "512MiB" (of 1024) or a number of bytes.
struct ByteCount {
  std::string text;
  uint64_t bytes = 0;

  static ByteCount from_text(std::string_view text) {
    struct Unit {
      std::string_view name;
      double bytes;
    };
    constexpr std::array<Unit, 9> kUnits = {{{"", 1},
                                             {"B", 1},
                                             {"KB", 1e3},
                                             {"MB", 1e6},
                                             {"GB", 1e9},
                                             {"TB", 1e12},
                                             {"KiB", 0x1p10},
                                             {"MiB", 0x1p20},
                                             {"GiB", 0x1p30}}};
    double count = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
    const std::string_view name(end, static_cast<size_t>(text.data() + text.size() - end));
    const auto* unit = std::ranges::find(kUnits, name, &Unit::name);
    if (error != std::errc{} || unit == kUnits.end() || !(count * unit->bytes >= 1) || count * unit->bytes > 0x1p60) {
      throw Error(ErrorCode::kUsage,
                  cat("'", text, "' is not a size; wanted a number with KB, MB, GB, TB, KiB, MiB or GiB, such as 5GB"));
    }
    return {std::string(text), static_cast<uint64_t>(count * unit->bytes)};
  }
  std::string to_text() const { return text; }
};

}  // namespace coppice
