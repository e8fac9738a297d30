#include "coppice/dist/backends_detail.h"

namespace coppice::dist {

std::optional<DeviceBackend> nccl() { return std::nullopt; }

}  // namespace coppice::dist
