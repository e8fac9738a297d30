#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "coppice/base/error.h"
#include "coppice/base/json.h"
#include "coppice/base/text.h"

namespace coppice::plan::detail {

/// Throws   Error{kFormat}: what a lineage has and should have.
[[noreturn]] void refuse_lineage(std::string_view source, std::string_view found, std::string_view wanted);

std::string_view command_of(const Json& step);
uint64_t seed_of_step(const Json& step, std::string_view source);

/// Runs `check`; Json's own errors, which name the key only, get `source` in front.
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
