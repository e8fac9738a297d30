#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/text.h"

namespace coppice::plan::detail {

/// Throws   Error{kFormat} that says what the lineage has and what was wanted.
[[noreturn]] void refuse_lineage(std::string_view source, std::string_view found, std::string_view wanted);

std::string_view command_of(const Json& step);
uint64_t seed_of_step(const Json& step, std::string_view source);

/// Runs `check` and puts `source` in front of Json's own errors, which name only the key.
template <class Check>
auto naming(std::string_view source, const Check& check) {
  try {
    return check();
  } catch (const Error& error) {
    const std::string_view message = error.what();
    throw Error(ErrorCode::kFormat, message.starts_with(source) ? std::string(message) : cat(source, ": ", message));
  }
}

}  // namespace coppice::plan::detail
