// Methods that act on intermediate units: rows of gate and up, columns of down, and the biases of gate and up.

#include <algorithm>
#include <cmath>

#include "coppice/matrix/mean_std.h"
#include "coppice/methods/expert_rows_detail.h"
#include "coppice/methods/purpose.h"

namespace coppice::methods {
namespace {

using families::Role;
using matrix::MatrixRows;
using matrix::RowFill;

// -- drop_units ---------------------------------------------------------------

constexpr ParamSpec kDropUnitsParams[] = {{.key = "ratio",
                                           .fallback = 0.5,
                                           .lo = 0.0,
                                           .hi = 1.0,
                                           .help = "share of the intermediate units that is reinitialised"}};

/// The units that this child reinitialises, in rising order: the same ones in gate, up and down.
std::vector<int64_t> dropped_units(int64_t units, const ChildKey& key, const Params& params) {
  const auto count = static_cast<uint32_t>(units);
  const auto order = key.expert_rng(kDroppedUnits).permutation(count);
  const auto redrawn = static_cast<std::ptrdiff_t>(std::floor(params.get("ratio") * count));
  std::vector<int64_t> dropped(order.begin(), order.begin() + redrawn);
  std::ranges::sort(dropped);
  return dropped;
}

matrix::MeanStd mean_std_of_units(const MatrixRows& matrix, const std::vector<int64_t>& units) {
  std::vector<float> picked;
  return matrix::mean_std<float>([&](auto add) {
    if (matrix.role != Role::kExpertDown) {
      picked.resize(static_cast<size_t>(matrix.cols));
      for (const int64_t unit : units) {
        matrix.read(unit, picked);
        add(std::span<const float>(picked));
      }
      return;
    }
    matrix.for_each_block([&](int64_t, std::span<const float> rows) {
      for (size_t row = 0; row < rows.size(); row += static_cast<size_t>(matrix.cols)) {
        picked.clear();
        for (const int64_t unit : units) picked.push_back(rows[row + static_cast<size_t>(unit)]);
        add(std::span<const float>(picked));
      }
    });
  });
}

RowFill drop_units(const MatrixRows& parent, const ChildKey& key, const matrix::RowsSource&, const Params& params) {
  if (parent.role == Role::kExpertDownBias) return parent.read;
  const auto units = dropped_units(parent.units(), key, params);
  const auto [mean, std] = mean_std_of_units(parent, units);
  return [parent, units, rng = key.tensor_rng(parent.role, kRedraw), center = static_cast<float>(mean),
          sigma = static_cast<float>(std)](int64_t first, std::span<float> out) {
    parent.read(first, out);
    const auto cols = static_cast<size_t>(parent.cols);
    std::vector<float> noise(cols);
    for (size_t at = 0; at < out.size(); at += cols, ++first) {
      const auto row = out.subspan(at, cols);
      const auto draw = [&] { rng.fill_normal(static_cast<uint64_t>(first * parent.cols), noise.data(), cols); };
      if (parent.role == Role::kExpertDown) {
        draw();
        for (const int64_t unit : units) {
          const auto c = static_cast<size_t>(unit);
          row[c] = center + sigma * noise[c];
        }
      } else if (std::ranges::binary_search(units, first)) {
        draw();
        for (size_t c = 0; c < cols; ++c) row[c] = center + sigma * noise[c];
      }
    }
  };
}

void drop_units_moment(ExpertView moment, const ChildKey& key, const Params& params) {
  if (moment.role == Role::kExpertDownBias) return;
  const auto units = dropped_units(moment.units(), key, params);
  for (int64_t r = 0; r < moment.rows; ++r) {
    const auto row = moment.row(r);
    if (moment.role == Role::kExpertDown) {
      for (const int64_t unit : units) row[static_cast<size_t>(unit)] = 0.0f;
    } else if (std::ranges::binary_search(units, r)) {
      std::ranges::fill(row, 0.0f);
    }
  }
}

}  // namespace

extern constinit const ExpertInit kDropUnits{
    .name = "drop_units",
    .child = drop_units,
    .apply_moment = drop_units_moment,
    .params = kDropUnitsParams,
    .same_bytes = false,
    .same_function = false,
    .changes_biases = true,
    .summary = "a share of the intermediate units reinitialised with the mean and std of the values that they replace",
    .source = "arXiv:2502.19261"};

namespace {

// -- permute_units ------------------------------------------------------------

/// Replaces unit u by the earlier unit order[u].
RowFill in_other_order(const MatrixRows& m, const ChildKey& key) {
  if (m.role == Role::kExpertDownBias) return m.read;
  return [m, order = key.expert_rng(kPermutation).permutation(static_cast<uint32_t>(m.units()))](int64_t first,
                                                                                                 std::span<float> out) {
    const auto cols = static_cast<size_t>(m.cols);
    if (m.role == Role::kExpertDown) {
      std::vector<float> before(out.size());
      m.read(first, before);
      for (size_t row = 0; row < out.size(); row += cols) {
        for (size_t u = 0; u < cols; ++u) out[row + u] = before[row + order[u]];
      }
      return;
    }
    for (size_t row = 0; row < out.size(); row += cols, ++first) {
      m.read(order[static_cast<size_t>(first)], out.subspan(row, cols));
    }
  };
}

RowFill permute_units(const MatrixRows& parent, const ChildKey& key, const matrix::RowsSource&, const Params&) {
  return in_other_order(parent, key);
}

void permute_units_moment(ExpertView moment, const ChildKey& key, const Params&) {
  const std::vector<float> before(moment.values.begin(), moment.values.end());
  const RowFill read = [&](int64_t first, std::span<float> out) {
    std::ranges::copy(std::span(before).subspan(static_cast<size_t>(first * moment.cols), out.size()), out.begin());
  };
  in_other_order({moment.role, moment.rows, moment.cols, read}, key)(0, moment.values);
}

}  // namespace

extern constinit const ExpertInit kPermuteUnits{
    .name = "permute_units",
    .child = permute_units,
    .apply_moment = permute_units_moment,
    .params = {},
    .same_bytes = false,
    .same_function = true,
    .changes_biases = true,
    .summary = "copy with its intermediate units in a random order: the same function",
    .source = kExpertUpcycling};

}  // namespace coppice::methods
