// main() of test programs that also run on the guarded device.
#include <gtest/gtest.h>

#include "tests/guarded/guarded_device.h"

int main(int argc, char** argv) {
  coppice::guarded::install_fault_handler();
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
