// Linked into coppice_guarded, whose main() is the command line's.
#include "tests/guarded/guarded_device.h"
#include "tests/guarded/staged_backend.h"

namespace {

[[maybe_unused]] const bool kInstalled = [] {
  coppice::guarded::install_fault_handler();
  coppice::guarded::install_staged_backend();
  return true;
}();

}  // namespace
