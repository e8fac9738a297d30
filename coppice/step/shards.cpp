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
int64_t first_layer(const nn::Parameter& parameter, int64_t layers) {
  if (parameter.layer >= 0) return parameter.layer;
  return parameter.role == families::Role::kEmbedding ? -1 : layers;
}

int64_t num_layers(const std::vector<nn::Parameter>& parameters) {
  int64_t most = 0;
  for (const auto& p : parameters) most = std::max(most, p.layer + 1);
  return most;
}

}  // namespace

ShardLayout::ShardLayout(const std::vector<nn::Parameter>& parameters, const nn::Division& division, int64_t most) {
  if (division.world) {
    ranks_ = division.world->size();
    rank_ = division.world->rank();
    expert_ranks_ = division.world->experts().size();
  }
  const int64_t layers = num_layers(parameters);
  for (const auto& p : parameters) {
    Size size{.layer = first_layer(p, layers), .count = p.value.numel(), .experts = p.is_experts(), .experts_of = {}};
    if (size.experts) {
      const auto& placement = division.placement.at(p.layer);
      size.num_experts = placement.num_experts();
      for (int64_t r = 0; r < expert_ranks_; ++r) size.experts_of.push_back(placement.experts_of(r));
      COPPICE_CHECK(p.experts == size.experts_of[static_cast<size_t>(rank_ % expert_ranks_)]);
      size.count /= std::ssize(p.experts);
    }
    sizes_.push_back(std::move(size));
  }
  for (size_t r = 0; r < static_cast<size_t>(expert_ranks_); ++r) {
    std::vector<ParameterSize> own;
    for (const Size& size : sizes_) {
      own.push_back(
          {size.layer, size.experts, size.count * (size.experts ? std::ssize(size.experts_of[r]) : int64_t{1})});
    }
    by_group_.push_back(make_buckets(own, ranks_, ranks_ / expert_ranks_, most));
  }
}

Interval ShardLayout::kept_by(size_t parameter, int64_t rank) const {
  for (const Bucket& bucket : by_group_[static_cast<size_t>(rank % expert_ranks_)]) {
    for (const auto& part : bucket.parts) {
      if (part.parameter != parameter) continue;
      return bucket.experts ? bucket.kept_of(part, rank / expert_ranks_, ranks_ / expert_ranks_)
                            : bucket.kept_of(part, rank, ranks_);
    }
  }
  COPPICE_CHECK(false, "parameter ", parameter, " is in no bucket");
}

Interval ShardLayout::kept(size_t parameter) const { return kept_by(parameter, rank_); }

int64_t ShardLayout::whole_count(size_t parameter) const {
  const Size& size = sizes_[parameter];
  return size.experts ? size.count * size.num_experts : size.count;
}

std::vector<Shard> ShardLayout::shards(size_t parameter) const {
  const Size& size = sizes_[parameter];
  std::vector<Shard> out;
  for (int64_t rank = 0; rank < ranks_; ++rank) {
    const Interval kept = kept_by(parameter, rank);
    if (kept.count() == 0) continue;
    if (!size.experts) {
      out.push_back({rank, kept});
      continue;
    }
    const auto& experts = size.experts_of[static_cast<size_t>(rank % expert_ranks_)];
    for (size_t local = 0; local < experts.size(); ++local) {
      const int64_t here = static_cast<int64_t>(local) * size.count, there = experts[local] * size.count;
      const Interval part = intersection(kept, {here, here + size.count});
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
  // From each rank in turn, in the order of what this rank wants: where it goes.
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
