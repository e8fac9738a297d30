#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "coppice/cost/cluster.h"

namespace coppice::cost {

/// A timed collective of `ranks` ranks in which each rank sends `bytes` to others, in ranks - 1 messages: a ring
/// reduce-scatter or all-gather, or an all-to-all.
struct LinkPoint {
  int64_t ranks = 0;
  double bytes = 0, seconds = 0;
};

struct LinkFit {
  Link link;
  double worst_error = 0;  ///< largest |predicted / measured - 1|
};

/// Seconds of such a collective.
double link_seconds(const Link& link, int64_t ranks, double bytes);

/// The link whose (ranks - 1) latency + bytes / bandwidth is nearest to the points, in relative terms.
///
/// Throws   Error{kFormat}: fewer than two points; one rank, or values that are not above 0; points whose times do not
///          tell a latency from a bandwidth, or that do not grow with the bytes.
LinkFit fit_link(std::span<const LinkPoint> points);

/// Points from a text file: ranks, bytes and seconds on each line, separated by spaces; `#` begins a comment.
///
/// Throws   Error{kNotFound, kIo}; Error{kFormat} naming file and line.
std::vector<LinkPoint> read_points(const std::filesystem::path& path);

/// The same from text; `source` names it in errors.
std::vector<LinkPoint> parse_points(std::string_view text, std::string_view source);

}  // namespace coppice::cost
