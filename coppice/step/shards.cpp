#include "coppice/step/shards.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "coppice/base/check.h"
#include "coppice/dist/group.h"
#include "coppice/dist/world.h"

namespace coppice::step {
namespace {

// The layer whose forward pass reads a parameter first.
int64_t first_layer(const ParameterSize& size, int64_t layers) {
  if (size.layer >= 0) return size.layer;
  return size.role == families::Role::kEmbedding ? -1 : layers;
}

}  // namespace

std::vector<ParameterSize> sizes_of(const std::vector<nn::Parameter>& parameters, const nn::Division& division) {
  std::vector<ParameterSize> out;
  for (const auto& p : parameters) {
    ParameterSize& size = out.emplace_back(ParameterSize{p.role, p.layer, p.value.numel(), 0});
    if (!p.is_experts()) continue;
    const auto placed = division.placement.find(p.layer);
    size.count /= p.value.size(0);
    size.experts = placed == division.placement.end() ? p.value.size(0) : placed->second.num_experts();
  }
  return out;
}

ShardLayout::ShardLayout(std::vector<ParameterSize> sizes, const nn::Division& division, int64_t most)
    : sizes_(std::move(sizes)), experts_(sizes_.size()) {
  if (division.world) {
    ranks_ = division.world->size();
    rank_ = division.world->rank();
    expert_ranks_ = division.world->experts().size();
  }
  int64_t layers = 0;
  for (const auto& size : sizes_) layers = std::max(layers, size.layer + 1);
  for (size_t i = 0; i < sizes_.size(); ++i) {
    if (sizes_[i].experts == 0) continue;
    for (int64_t r = 0; r < expert_ranks_; ++r) {
      experts_[i].push_back(division.experts_of(sizes_[i].layer, sizes_[i].experts, r));
    }
  }
  for (size_t r = 0; r < static_cast<size_t>(expert_ranks_); ++r) {
    std::vector<LocalSize> own;
    for (size_t i = 0; i < sizes_.size(); ++i) {
      const bool experts = !experts_[i].empty();
      own.push_back({first_layer(sizes_[i], layers), experts,
                     sizes_[i].count * (experts ? std::ssize(experts_[i][r]) : int64_t{1})});
    }
    by_group_.push_back(make_buckets(own, ranks_, ranks_ / expert_ranks_, most));
  }
  place_.resize(sizes_.size());
  for (size_t b = 0; b < buckets().size(); ++b) {
    const auto& parts = buckets()[b].parts;
    for (size_t p = 0; p < parts.size(); ++p) place_[parts[p].parameter] = {b, p};
  }
}

int64_t ShardLayout::whole_count(size_t parameter) const {
  return sizes_[parameter].count * std::max<int64_t>(sizes_[parameter].experts, 1);
}

std::vector<Interval> ShardLayout::elements_of(size_t parameter, std::span<const int64_t> experts) const {
  const int64_t size = sizes_[parameter].count;
  std::vector<Interval> out;
  for (const int64_t expert : experts) out.push_back({expert * size, (expert + 1) * size});
  return out;
}

const std::vector<int64_t>& ShardLayout::experts_of(size_t parameter, int64_t rank) const {
  static const std::vector<int64_t> kNone;
  return experts_[parameter].empty() ? kNone : experts_[parameter][static_cast<size_t>(rank % expert_ranks_)];
}

Interval ShardLayout::kept_by(size_t parameter, int64_t rank) const {
  const auto [index, part] = place_[parameter];
  const Bucket& bucket = by_group_[static_cast<size_t>(rank % expert_ranks_)][index];
  return bucket.experts ? bucket.kept_of(bucket.parts[part], rank / expert_ranks_, ranks_ / expert_ranks_)
                        : bucket.kept_of(bucket.parts[part], rank, ranks_);
}

std::vector<Shard> ShardLayout::shards(size_t parameter) const {
  const int64_t size = sizes_[parameter].count;
  std::vector<Shard> out;
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    const Interval kept = kept_by(parameter, rank);
    if (kept.count() == 0) continue;
    const auto& experts = experts_of(parameter, rank);
    if (experts.empty()) out.push_back({rank, kept});
    for (size_t local = 0; local < experts.size(); ++local) {
      const int64_t here = static_cast<int64_t>(local) * size, there = experts[local] * size;
      const Interval part = intersection(kept, {here, here + size});
      if (part.count() > 0) out.push_back({rank, {part.begin - here + there, part.end - here + there}});
    }
  }
  return out;
}

at::Tensor gather_shards(dist::Group& group, const std::vector<Shard>& shards, const at::Tensor& own,
                         const std::vector<std::vector<Interval>>& wanted) {
  const auto ranks = static_cast<size_t>(group.size()), me = static_cast<size_t>(group.rank());
  COPPICE_CHECK(wanted.size() == ranks && own.dim() == 1);
  std::vector<int64_t> in_rows(ranks, 0), out_rows(ranks, 0);
  std::vector<at::Tensor> sent{own.narrow(0, 0, 0)};
  for (size_t to = 0; to < ranks; ++to) {
    for (const Interval& want : wanted[to]) {
      int64_t offset = 0;
      for (const Shard& shard : shards) {
        if (shard.rank != group.rank()) continue;
        const Interval part = intersection(shard.elements, want);
        if (part.count() > 0) {
          sent.push_back(own.narrow(0, offset + part.begin - shard.elements.begin, part.count()));
          in_rows[to] += part.count();
        }
        offset += shard.elements.count();
      }
    }
  }
  // Where the elements from each rank go, in the order of what this rank wants.
  std::vector<std::vector<std::pair<int64_t, int64_t>>> places(ranks);  // (position in the result, count) by rank
  int64_t total = 0;
  for (const Interval& want : wanted[me]) {
    for (const Shard& shard : shards) {
      const Interval part = intersection(shard.elements, want);
      if (part.count() == 0) continue;
      places[static_cast<size_t>(shard.rank)].emplace_back(total + part.begin - want.begin, part.count());
      out_rows[static_cast<size_t>(shard.rank)] += part.count();
    }
    total += want.count();
  }
  int64_t received = 0;
  for (const int64_t rows : out_rows) received += rows;
  COPPICE_CHECK(received == total, received, " of ", total, " elements have an owner");
  const at::Tensor in = at::cat(sent), got = at::empty({total}, own.options());
  group.all_to_all(got, in, out_rows, in_rows).wait();
  const at::Tensor out = at::empty({total}, own.options());
  int64_t offset = 0;
  for (const auto& of_rank : places) {
    for (const auto& [to, count] : of_rank) {
      out.narrow(0, to, count).copy_(got.narrow(0, offset, count));
      offset += count;
    }
  }
  return out;
}

}  // namespace coppice::step
