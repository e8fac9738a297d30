#pragma once

#include <string_view>

namespace coppice {

/// The version of coppice, as in CMakeLists.txt: "0.1.0".
std::string_view version();

}  // namespace coppice
