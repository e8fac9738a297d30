#include "coppice/train/traffic.h"

#include <set>
#include <utility>

namespace coppice::train {

std::vector<Scalar> TrafficMeter::read(uint64_t to_gather) {
  if (!world_) return {};
  static constexpr std::pair<const char*, dist::Collective> kNames[] = {
      {"sent/reduce_scatter", dist::Collective::kReduceScatter},
      {"sent/all_gather", dist::Collective::kAllGather},
      {"sent/all_to_all", dist::Collective::kAllToAll},
      {"sent/all_reduce", dist::Collective::kAllReduce},
      {"sent/broadcast", dist::Collective::kBroadcast}};
  // Groups of the same ranks may be one.
  const std::set<dist::Group*> groups{&world_->control(), &world_->all(), &world_->experts(), &world_->same_experts()};
  std::vector<Scalar> out;
  for (const auto& [name, collective] : kNames) {
    uint64_t sent = collective == dist::Collective::kAllGather ? to_gather : 0;
    for (dist::Group* const group : groups) sent += group->bytes_sent(collective);
    out.emplace_back(name, static_cast<double>(sent - std::exchange(before_[name], sent)));
  }
  return out;
}

}  // namespace coppice::train
