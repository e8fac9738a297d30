// Linked into coppice_guarded, whose main() is the command line's.
#include "tests/guarded/guarded_device.h"

namespace {

[[maybe_unused]] const bool kInstalled = [] {
  coppice::guarded::install_fault_handler();
  return true;
}();

}  // namespace
