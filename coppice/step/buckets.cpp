#include "coppice/step/buckets.h"

#include <algorithm>
#include <numeric>

#include "coppice/base/check.h"

namespace coppice::step {
namespace {

constexpr int64_t kAlign = 64;  // elements: intervals begin at multiples of 128 bytes in bf16 and f32

void pad(Bucket& bucket, int64_t ranks) {
  const int64_t unit = ranks * kAlign;
  bucket.count = (bucket.count + unit - 1) / unit * unit;
}

}  // namespace

Interval intersection(const Interval& a, const Interval& b) {
  const Interval both{std::max(a.begin, b.begin), std::min(a.end, b.end)};
  return both.count() > 0 ? both : Interval{};
}

Interval Bucket::kept(int64_t rank, int64_t ranks) const {
  COPPICE_CHECK(count % ranks == 0 && rank >= 0 && rank < ranks);
  return {count / ranks * rank, count / ranks * (rank + 1)};
}

Interval Bucket::kept_of(const Part& part, int64_t rank, int64_t ranks) const {
  const Interval both = intersection(kept(rank, ranks), {part.begin, part.begin + part.count});
  return both.count() > 0 ? Interval{both.begin - part.begin, both.end - part.begin} : Interval{};
}

std::vector<Bucket> make_buckets(std::span<const LocalSize> parameters, int64_t ranks, int64_t experts_ranks,
                                 int64_t most) {
  std::vector<size_t> order(parameters.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [&](size_t i) { return parameters[i].layer; });
  std::vector<Bucket> out;
  const auto add_all = [&](bool experts) {
    bool is_first = true;
    for (const size_t i : order) {
      const LocalSize& size = parameters[i];
      if (size.experts != experts) continue;
      const bool fits = !is_first && (experts ? out.back().layer == size.layer : out.back().count + size.count <= most);
      if (!fits) out.push_back({.experts = experts, .layer = size.layer, .parts = {}, .count = 0});
      is_first = false;
      out.back().parts.push_back({i, out.back().count, size.count});
      out.back().count += size.count;
    }
  };
  add_all(false);
  add_all(true);
  for (Bucket& bucket : out) pad(bucket, bucket.experts ? experts_ranks : ranks);
  std::ranges::stable_sort(out, {}, &Bucket::layer);
  return out;
}

}  // namespace coppice::step
