#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/cost/memory.h"

namespace coppice::cost {

/// What one GPU can send over a kind of link, in one direction.
struct Link {
  double bytes_per_s = 0;
  double latency_s = 0;  ///< of one message
};

/// Nodes of several GPUs. Where GPUs share a network port, each has its part of it.
struct Cluster {
  std::string name;
  int64_t gpus_per_node = 1;
  Link node, network;
  std::string source;
};

/// The named clusters, each with the public source of its numbers.
const std::vector<Cluster>& clusters();

/// The cluster of that name, or one fitted to the measured points of the file `name` (read_points, link_fit.h), with
/// one rank a node.
///
/// Throws   Error{kUsage} for a name that is neither; Error{kFormat} for a file that is no table of points.
Cluster find_cluster(const std::string& name);

/// Throws   Error{kUsage}: a rate that is not above 0, a latency below 0, no GPU a node; ranks or groups of ranks that
///          do not fill nodes evenly.
void check_cluster(const Cluster& cluster, const Parallelism& parallelism);

/// A collective's ranks: how many, and how many of them share a node.
struct Spread {
  int64_t ranks = 1, per_node = 1;
  bool crosses() const { return ranks > per_node; }
};
/// All ranks; those that hold all experts together (consecutive); those that hold the same experts.
Spread all_ranks(const Cluster& cluster, const Parallelism& parallelism);
Spread expert_ranks(const Cluster& cluster, const Parallelism& parallelism);
Spread same_expert_ranks(const Cluster& cluster, const Parallelism& parallelism);

/// Seconds of a reduce-scatter or an all-gather of a tensor of `bytes`: the faster one of a ring over all ranks, and of
/// a ring in each node followed by rings across nodes. All groups of ranks work at the same time.
///
/// Source   n - 1 messages of bytes / n each (Patarasuk and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002).
double sharded_seconds(const Cluster& cluster, const Spread& spread, double bytes);

/// Seconds of an all-to-all in which each rank sends `bytes` to others, in equal parts: the faster one of direct
/// messages, and of messages between nodes after an exchange in each node.
double all_to_all_seconds(const Cluster& cluster, const Spread& spread, double bytes);

}  // namespace coppice::cost
