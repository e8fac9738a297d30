#pragma once

#include <string_view>

namespace coppice {

/// What --device takes by default; nn::compute_device knows every name.
inline constexpr std::string_view kAutoDevice = "auto";
/// Help of the flag --device of every command that computes with libtorch.
inline constexpr std::string_view kDeviceHelp =
    "device to compute on: auto (a GPU if there is one), cpu, cuda or cuda:N";

}  // namespace coppice
