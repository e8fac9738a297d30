#include <gtest/gtest.h>

#include <cstdlib>

#include "coppice/io/safetensors.h"

namespace coppice::io {
namespace {

// The other half is tests/parity/test_safetensors.py: it writes files with the safetensors library, runs this and
// loads the results with the library again.
TEST(SafetensorsParity, RewritesWhatThePythonLibraryWrote) {
  const char* in = std::getenv("COPPICE_TEST_IN");
  const char* out = std::getenv("COPPICE_TEST_OUT");
  if (!in || !out) GTEST_SKIP() << "runs from tests/parity/test_safetensors.py, which sets COPPICE_TEST_IN and _OUT";
  for (const auto& entry : std::filesystem::directory_iterator(in)) {
    const auto source = SafetensorsFile::open(entry.path());
    SafetensorsWriter writer(std::filesystem::path(out) / entry.path().filename(), source.tensors(), source.metadata());
    for (const auto& t : source.tensors()) writer.write(t, 0, source.data(t));
    writer.finish();
  }
}

}  // namespace
}  // namespace coppice::io
