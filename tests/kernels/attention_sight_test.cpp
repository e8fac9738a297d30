// What a query sees: windows, sinks and documents, by blocks of queries.

#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include "coppice/kernels/attention_detail.h"
#include "tests/guarded/devices.h"
#include "tests/guarded/guarded_device.h"
#include "tests/kernels/attention_forms.h"
#include "tests/testing/errors.h"

namespace coppice::kernels {
namespace {

using guarded::kCpu;
using guarded::kGuarded;
using testing::attention_inputs;
using testing::AttentionCase;
using testing::expect_attention_near;
using testing::kHeads;
using testing::kScale;
using testing::run_attention;
using testing::sight_of;

at::Tensor attention(const AttentionCase& c, const std::vector<at::Tensor>& in) {
  return causal_attention(in[0], in[1], in[2], kScale, sight_of(c, in));
}

class AttentionSight : public ::testing::TestWithParam<AttentionCase> {
 protected:
  std::vector<at::Tensor> run(at::ScalarType dtype, at::Device device) const {
    return run_attention(attention_inputs(GetParam()), dtype, device,
                         [&](const auto& x) { return attention(GetParam(), x); });
  }
  std::vector<at::Tensor> wanted(at::ScalarType rounded = at::kDouble) const {
    auto in = attention_inputs(GetParam());
    for (auto& t : in) t = t.to(rounded);
    return run_attention(in, at::kDouble, kCpu, [&](const auto& x) { return testing::plain(GetParam(), x); });
  }
};
INSTANTIATE_TEST_SUITE_P(Cases, AttentionSight, testing::attention_cases(), testing::attention_name);

TEST_P(AttentionSight, GivesOutputAndGradientsOfTheDefinition) {
  expect_attention_near(run(at::kDouble, kCpu), wanted(), 1e-12);
  expect_attention_near(run(at::kFloat, kCpu), wanted(at::kFloat), 1e-5);
}

TEST_P(AttentionSight, InBf16IsWithinItsRounding) {
  const auto found = run(at::kBFloat16, kCpu), wanted_of_rounded = wanted(at::kBFloat16);
  expect_attention_near(found, wanted_of_rounded, 3e-2);
}

TEST_P(AttentionSight, IsTheSameToRoundingOnAnotherDevice) {
  expect_attention_near(run(at::kFloat, kGuarded), wanted(at::kFloat), 1e-5);
}

TEST_P(AttentionSight, DoesNotMakeTheHostWait) {
  auto in = attention_inputs(GetParam());
  for (auto& t : in) t = t.to(kGuarded).set_requires_grad(true);
  const long before = guarded::counters().copies_to_host;
  attention(GetParam(), in).sum().backward();
  EXPECT_EQ(guarded::counters().copies_to_host, before);
}

TEST(AttentionWindow, OfAllPositionsIsNone) {
  const AttentionCase c{"", 21, 8, 21, false, false};
  const auto in = attention_inputs(c);
  const auto all = causal_attention(in[0], in[1], in[2], kScale);
  EXPECT_LE((all - attention(c, in)).abs().max().item<float>(), 1e-5f);
}

// A sink far above every score takes all of the softmax; one far below none.
TEST(AttentionSink, TakesItsShare) {
  const AttentionCase c{"", 21, 8, 0, true, false};
  auto in = attention_inputs(c);
  in[3] = at::ones({kHeads}) * 60;
  EXPECT_LE(attention(c, in).abs().max().item<float>(), 1e-6f);
  in[3] = at::ones({kHeads}) * -60;
  const auto all = causal_attention(in[0], in[1], in[2], kScale);
  EXPECT_LE((all - attention(c, in)).abs().max().item<float>(), 1e-5f);
}

// The scores of all pairs would take 192 MiB, those of a block of 256 queries 24.
TEST(AttentionMemory, HoldsNothingForEveryPair) {
  const AttentionCase c{"", 2048, 8, 0, true, false};
  auto in = attention_inputs(c);
  for (auto& t : in) t = t.to(kGuarded).set_requires_grad(true);
  const auto before = guarded::live_bytes();
  guarded::reset_peak();
  attention(c, in).sum().backward();
  // Scores, which become the weights, their gradients, and one more while they are made.
  EXPECT_LE(guarded::peak_bytes() - before, int64_t{80} << 20);
  EXPECT_GE(guarded::peak_bytes() - before, int64_t{24} << 20);
}

TEST(Documents, AreFoundOnceABatch) {
  const auto start_BS = testing::document_starts(21);
  const auto found = find_documents(start_BS, kGuarded);
  EXPECT_EQ(found.start_BS.device(), kGuarded);
  EXPECT_EQ(found.first_token.device(), kGuarded);
  EXPECT_EQ(found.longest, 19);
  EXPECT_TRUE(at::equal(found.first_token.to(at::kCPU),
                        at::tensor(std::vector<int32_t>{0, 5, 10, 15, 20, 21, 40, 42}, at::kInt)));
  EXPECT_TRUE(at::equal(found.here_BS, start_BS));
  EXPECT_FALSE(find_documents({}, kGuarded).exist());
  coppice::testing::expect_error(ErrorCode::kInternal, {"kCPU"},
                                 [&] { (void)find_documents(start_BS.to(kGuarded), kGuarded); });
}

}  // namespace
}  // namespace coppice::kernels
