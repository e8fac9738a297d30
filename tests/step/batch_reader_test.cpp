#include "coppice/step/batch_reader.h"

#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

#include "coppice/nn/host.h"
#include "tests/guarded/devices.h"
#include "tests/testing/temp_dir.h"
#include "tests/testing/token_files.h"

namespace coppice::step {
namespace {

class BatchReaderOn : public ::testing::TestWithParam<at::Device> {
 protected:
  void SetUp() override { testing::write_tokens(dir / "tokens", 32, 10, 200); }
  testing::TempDir dir;
};
INSTANTIATE_TEST_SUITE_P(Devices, BatchReaderOn, guarded::both_devices(), guarded::device_name);

TEST_P(BatchReaderOn, GivesTheSamplersWindowsWhetherReadAheadOrNot) {
  const data::Sampler sampler({data::TokenFile::open(dir / "tokens")}, {}, 16, 1);
  BatchReader ahead(sampler, GetParam(), true), now(sampler, GetParam(), true);
  ahead.read_ahead(5, 3);
  for (const auto& [first, count] : {std::pair{uint64_t{5}, int64_t{3}}, {5, 3}, {8, 2}}) {
    const auto found = ahead.take(first, count), wanted = now.take(first, count);
    EXPECT_TRUE(found.tokens_BS.is_cpu());
    EXPECT_EQ(found.tokens_BS.is_pinned(), !GetParam().is_cpu());
    EXPECT_EQ(found.tokens_BS.sizes(), (at::IntArrayRef{count, 16}));
    EXPECT_TRUE(at::equal(found.tokens_BS, wanted.tokens_BS));
    EXPECT_TRUE(at::equal(found.target_BS, wanted.target_BS));
    EXPECT_TRUE(at::equal(found.start_BS, wanted.start_BS));
    ahead.read_ahead(first + 1, count);  // windows that are not the ones asked for next
  }
  std::vector<int64_t> tokens(16), targets(16);
  sampler.read(9, tokens, targets);
  const auto batch = now.take(8, 2);
  EXPECT_EQ(nn::to_host<int64_t>(batch.tokens_BS[1]), tokens);
  EXPECT_EQ(nn::to_host<int64_t>(batch.target_BS[1]), targets);
}

TEST_P(BatchReaderOn, ReadsStartsOfDocumentsOnlyIfAskedTo) {
  const data::Sampler sampler({data::TokenFile::open(dir / "tokens")}, {}, 16, 1);
  EXPECT_FALSE(BatchReader(sampler, GetParam(), false).take(0, 1).start_BS.defined());
}

}  // namespace
}  // namespace coppice::step
