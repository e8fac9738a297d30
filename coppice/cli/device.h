#pragma once

#include <string>
#include <string_view>

#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/nn/device.h"
#include "coppice/options/device_option.h"

namespace coppice::cli {

/// The device that `option` names, as nn::compute_device reads it; tells which one `auto` took.
inline at::Device use_device(const std::string& name, std::string_view option = "device") {
  const at::Device device = nn::compute_device(name, option);
  if (name == kAutoDevice && !device.is_cpu()) log_info(cat("computing on ", nn::device_name(device)));
  return device;
}

}  // namespace coppice::cli
