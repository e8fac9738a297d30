#include "coppice/cost/cluster.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/cost/link_fit.h"

namespace coppice::cost {
namespace {

// Latencies of one step of a ring with the protocol for large messages: 3.4 us over NVLink and 9.6 us over an RDMA
// network in NCCL's own model (github.com/NVIDIA/nccl, src/graph/tuning.cc, hwLat, "Ring, Simple").
constexpr double kNvlink = 3.4e-6, kRdma = 9.6e-6;
// Nobody publishes one number for TCP. 50 us is the order of a round trip in one room; measure yours.
constexpr double kTcp = 50e-6;
constexpr double kGbit = 1e9 / 8;

constexpr const char* kLatencies = "latencies of NCCL's src/graph/tuning.cc";

}  // namespace

const std::vector<Cluster>& clusters() {
  static const std::vector<Cluster> all = {
      // A100: NVLink 3 has 300 GB/s one way (data sheet); NCCL's model lets a ring have at most 235 of them (tuning.cc,
      // compCap80).
      // Amazon EC2 user guide, p4d.24xlarge: 8 A100, 400 Gb/s a node.
      {"nvlink3-efa",
       8,
       {235e9, kNvlink},
       {400 * kGbit / 8, kRdma},
       cat("EC2 p4d: 8 A100, 400 Gb/s a node; NVLink 3, ring of 235 GB/s and ", kLatencies)},
      // NVIDIA DGX A100 data sheet: 8 ports of 200 Gb/s HDR InfiniBand for 8 GPUs.
      {"nvlink3-hdr",
       8,
       {235e9, kNvlink},
       {200 * kGbit, kRdma},
       cat("DGX A100 data sheet: 8 x 200 Gb/s InfiniBand; NVLink 3, ring of 235 GB/s and ", kLatencies)},
      // NVIDIA H100 data sheet: NVLink 4, 900 GB/s both ways. DGX H100 data sheet: 8 ConnectX-7 ports of 400 Gb/s.
      {"nvlink4-ndr",
       8,
       {450e9, kNvlink},
       {400 * kGbit, kRdma},
       cat("DGX H100 data sheet: NVLink 4, 8 x 400 Gb/s InfiniBand NDR; ", kLatencies)},
      // NVIDIA DGX B200 data sheet: NVLink 5, 1.8 TB/s a GPU both ways; 8 ConnectX-7 ports of 400 Gb/s.
      {"nvlink5-ndr",
       8,
       {900e9, kNvlink},
       {400 * kGbit, kRdma},
       cat("DGX B200 data sheet: NVLink 5, 8 x 400 Gb/s InfiniBand NDR; ", kLatencies)},
      // A node as above with one Ethernet port (IEEE 802.3 line rate) for its 8 GPUs.
      {"nvlink4-100g",
       8,
       {450e9, kNvlink},
       {100 * kGbit / 8, kTcp},
       "H100 data sheet; one 100 Gb/s Ethernet port a node; network latency of TCP assumed: 50 us"},
      // One GPU or one CPU a node, Ethernet by its line rate.
      {"ethernet-100g", 1, {100 * kGbit, kTcp}, {100 * kGbit, kTcp}, "line rate; latency of TCP assumed: 50 us"},
      {"ethernet-25g", 1, {25 * kGbit, kTcp}, {25 * kGbit, kTcp}, "line rate; latency of TCP assumed: 50 us"},
      {"ethernet-10g", 1, {10 * kGbit, kTcp}, {10 * kGbit, kTcp}, "line rate; latency of TCP assumed: 50 us"},
  };
  return all;
}

Cluster find_cluster(const std::string& name) {
  const auto found = std::ranges::find(clusters(), name, &Cluster::name);
  if (found != clusters().end()) return *found;
  if (std::filesystem::is_regular_file(name)) {
    const auto points = read_points(name);
    const LinkFit fit = fit_link(points);
    return {.name = name,
            .node = fit.link,
            .network = fit.link,
            .source = cat("fitted to ", points.size(), " measured points of ", name, ", worst error ",
                          percent(fit.worst_error))};
  }
  std::vector<std::string> names;
  for (const Cluster& known : clusters()) names.push_back(known.name);
  throw Error(ErrorCode::kUsage, cat("cluster: '", name, "' is neither a known cluster nor a file of measured points",
                                     suggestion(name, names)));
}

void check_cluster(const Cluster& cluster, const Parallelism& parallelism) {
  const auto refuse = [&](const std::string& message) {
    throw Error(ErrorCode::kUsage, cat("cluster: ", cluster.name, ": ", message));
  };
  for (const Link& link : {cluster.node, cluster.network}) {
    if (!(link.bytes_per_s > 0) || !std::isfinite(link.bytes_per_s))
      refuse(cat("a bandwidth of ", number_text(link.bytes_per_s), " bytes per second; wanted a number above 0"));
    if (!(link.latency_s >= 0) || !std::isfinite(link.latency_s))
      refuse(cat("a latency of ", number_text(link.latency_s), " s; wanted 0 or more"));
  }
  const int64_t gpus = cluster.gpus_per_node;
  if (gpus < 1) refuse(cat(gpus, " GPUs a node; wanted 1 or more"));
  const auto fills = [&](int64_t ranks) { return ranks <= gpus ? gpus % ranks == 0 : ranks % gpus == 0; };
  if (parallelism.data > gpus && !fills(parallelism.data))
    refuse(cat(parallelism.data, " ranks do not fill nodes of ", gpus, " GPUs"));
  if (!fills(parallelism.expert) && parallelism.data > gpus)
    refuse(cat("expert groups of ", parallelism.expert, " ranks do not fit nodes of ", gpus,
               " GPUs (choose an --expert-parallel that divides ", gpus, ", or a multiple of it)"));
}

Spread all_ranks(const Cluster& cluster, const Parallelism& parallelism) {
  return {parallelism.data, std::min(parallelism.data, cluster.gpus_per_node)};
}

Spread expert_ranks(const Cluster& cluster, const Parallelism& parallelism) {
  return {parallelism.expert, std::min(parallelism.expert, cluster.gpus_per_node)};
}

Spread same_expert_ranks(const Cluster& cluster, const Parallelism& parallelism) {
  const int64_t in_node = std::min(parallelism.data, cluster.gpus_per_node);
  return {parallelism.data / parallelism.expert, std::max<int64_t>(1, in_node / parallelism.expert)};
}

double sharded_seconds(const Cluster& cluster, const Spread& spread, double bytes) {
  if (spread.ranks <= 1 || bytes <= 0) return 0;
  const auto n = static_cast<double>(spread.ranks), m = static_cast<double>(spread.per_node);
  const auto ring = [](double ranks, double all, double rate, double latency) {
    return (ranks - 1) * (latency + all / ranks / rate);
  };
  if (!spread.crosses()) return ring(n, bytes, cluster.node.bytes_per_s, cluster.node.latency_s);
  // m rings side by side, so that the ports of all m GPUs carry a part.
  const double slowest = std::min(cluster.node.bytes_per_s, m * cluster.network.bytes_per_s);
  const double flat = ring(n, bytes, slowest, std::max(cluster.node.latency_s, cluster.network.latency_s));
  const double in_node = ring(m, bytes, cluster.node.bytes_per_s, cluster.node.latency_s);
  const double across = ring(n / m, bytes / m, cluster.network.bytes_per_s, cluster.network.latency_s);
  return std::min(flat, in_node + across);
}

double all_to_all_seconds(const Cluster& cluster, const Spread& spread, double bytes) {
  if (spread.ranks <= 1 || bytes <= 0) return 0;
  const auto n = static_cast<double>(spread.ranks), m = static_cast<double>(spread.per_node);
  const double to_node = bytes * (m - 1) / (n - 1), to_others = bytes - to_node;
  const double in_node = (m - 1) * cluster.node.latency_s + to_node / cluster.node.bytes_per_s;
  if (!spread.crosses()) return in_node;
  const double direct =
      std::max(in_node, (n - m) * cluster.network.latency_s + to_others / cluster.network.bytes_per_s);
  // First to the GPU of the own node that speaks with the right GPU of each other node.
  const double gathered =
      (m - 1) * cluster.node.latency_s + (to_node + to_others * (m - 1) / m) / cluster.node.bytes_per_s;
  const double across = (n / m - 1) * cluster.network.latency_s + to_others / cluster.network.bytes_per_s;
  return std::min(direct, gathered + across);
}

}  // namespace coppice::cost
