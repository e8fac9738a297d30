#include "coppice/base/version.h"

namespace coppice {

std::string_view version() { return COPPICE_VERSION; }

}  // namespace coppice
