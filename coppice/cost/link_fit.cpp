#include "coppice/cost/link_fit.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/text.h"

namespace coppice::cost {
namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 20;

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorCode::kFormat, message); }

void check_point(const LinkPoint& point) {
  const bool is_good = point.ranks >= 2 && point.bytes > 0 && point.seconds > 0 && std::isfinite(point.bytes) &&
                       std::isfinite(point.seconds);
  if (!is_good) {
    refuse(cat("measured points: ", point.ranks, " ranks, ", number_text(point.bytes), " bytes, ",
               number_text(point.seconds), " s; wanted 2 ranks or more, and bytes and seconds above 0"));
  }
}

// The latency a and the seconds per byte b that minimise the sum of ((m a + x b) / y - 1)^2.
struct Sums {
  double mm = 0, mx = 0, xx = 0, m = 0, x = 0;
};

Sums sums_of(std::span<const LinkPoint> points) {
  Sums sums;
  for (const LinkPoint& point : points) {
    const double messages = static_cast<double>(point.ranks - 1) / point.seconds, bytes = point.bytes / point.seconds;
    sums.mm += messages * messages;
    sums.mx += messages * bytes;
    sums.xx += bytes * bytes;
    sums.m += messages;
    sums.x += bytes;
  }
  return sums;
}

std::optional<double> number_of(std::string_view word) {
  double value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (error != std::errc() || end != word.data() + word.size()) return std::nullopt;
  return value;
}

std::vector<double> numbers_of(std::string_view line, const std::string& place) {
  std::vector<double> numbers;
  for (size_t at = 0; (at = line.find_first_not_of(" \t\r", at)) != std::string_view::npos;) {
    const size_t end = std::min(line.find_first_of(" \t\r", at), line.size());
    const std::string_view word = line.substr(at, end - at);
    const auto value = number_of(word);
    if (!value) refuse(cat(place, ": '", shown(word.substr(0, 40)), "' is no number; wanted ranks, bytes and seconds"));
    numbers.push_back(*value);
    at = end;
  }
  return numbers;
}

}  // namespace

double link_seconds(const Link& link, int64_t ranks, double bytes) {
  return static_cast<double>(ranks - 1) * link.latency_s + bytes / link.bytes_per_s;
}

LinkFit fit_link(std::span<const LinkPoint> points) {
  if (points.size() < 2) refuse(cat("measured points: ", points.size(), " given; wanted two or more"));
  for (const LinkPoint& point : points) check_point(point);
  const Sums sums = sums_of(points);
  const double determinant = sums.mm * sums.xx - sums.mx * sums.mx;
  if (!(determinant > 1e-9 * sums.mm * sums.xx)) {
    refuse(
        "measured points: bytes are the same multiple of the messages everywhere, so latency and bandwidth cannot be "
        "told apart (measure small and large transfers)");
  }
  double latency = (sums.m * sums.xx - sums.x * sums.mx) / determinant;
  double per_byte = (sums.x * sums.mm - sums.m * sums.mx) / determinant;
  if (latency < 0) {  // the best link without a latency
    latency = 0;
    per_byte = sums.x / sums.xx;
  }
  if (!(per_byte > 0)) refuse("measured points: times do not grow with the bytes (measure larger transfers)");
  if (!std::isfinite(latency) || !std::isfinite(1 / per_byte)) refuse("measured points: values are too far apart");
  LinkFit fit{.link = {1 / per_byte, latency}};
  for (const LinkPoint& point : points) {
    const double predicted = link_seconds(fit.link, point.ranks, point.bytes);
    fit.worst_error = std::max(fit.worst_error, std::fabs(predicted / point.seconds - 1));
  }
  return fit;
}

std::vector<LinkPoint> read_points(const std::filesystem::path& path) {
  return parse_points(read_file(path, kMostBytes), path.string());
}

std::vector<LinkPoint> parse_points(std::string_view text, std::string_view source) {
  std::vector<LinkPoint> points;
  size_t number = 0;
  for (const std::string& line : split(text, '\n')) {
    const std::string place = cat(source, ":", ++number);
    const auto values = numbers_of(std::string_view(line).substr(0, line.find('#')), place);
    if (values.empty()) continue;
    const bool has_ranks = values[0] >= 2 && values[0] <= 1e9 && values[0] == std::floor(values[0]);
    if (values.size() != 3 || !has_ranks) {
      refuse(cat(place, ": wanted three numbers: ranks (2 or more), bytes that a rank sends, seconds"));
    }
    points.push_back({static_cast<int64_t>(values[0]), values[1], values[2]});
  }
  return points;
}

}  // namespace coppice::cost
