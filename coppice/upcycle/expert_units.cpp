// Methods that act on intermediate units: rows of gate and up, columns of down, and the biases of gate and up.

#include <algorithm>
#include <cmath>

#include "coppice/upcycle/expert_rows_detail.h"
#include "coppice/upcycle/lane_sum_detail.h"
#include "coppice/upcycle/purpose_detail.h"

namespace coppice::upcycle {
namespace {

using families::Role;

// -- drop_units ---------------------------------------------------------------

constexpr ParamSpec kDropUnitsParams[] = {
    {.key = "ratio", .fallback = 0.5, .lo = 0.0, .hi = 1.0, .help = "share of the intermediate units that is redrawn"}};

/// The units that this child redraws, rising: the same ones in gate, up and down.
std::vector<int64_t> dropped_units(const ExpertView& view, const ChildKey& key, const Params& params) {
  const auto units = static_cast<uint32_t>(view.units());
  const auto order = key.expert_rng(kDroppedUnits).permutation(units);
  const auto count = static_cast<size_t>(std::floor(params.get("ratio") * units));
  std::vector<int64_t> dropped(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count));
  std::ranges::sort(dropped);
  return dropped;
}

/// Calls visit(row, columns) for the elements of these units in [out, in] order; `columns` index into the row.
template <class Visit>
void visit_units(const ExpertView& view, const std::vector<int64_t>& units, Visit visit) {
  if (view.role == Role::kExpertDown) {
    for (int64_t r = 0; r < view.rows; ++r) visit(r, std::span(units));
    return;
  }
  std::vector<int64_t> all(static_cast<size_t>(view.cols));
  for (size_t c = 0; c < all.size(); ++c) all[c] = static_cast<int64_t>(c);
  for (const int64_t r : units) visit(r, std::span<const int64_t>(all));
}

void drop_units(ExpertView child, const ChildKey& key, const PartnerSource&, const Params& params) {
  if (child.role == Role::kExpertDownBias) return;
  const auto units = dropped_units(child, key, params);
  std::vector<float> picked;
  const auto [mean, std] = mean_std<float>([&](auto add) {
    visit_units(child, units, [&](int64_t r, std::span<const int64_t> columns) {
      picked.clear();
      for (const int64_t c : columns) picked.push_back(child.row(r)[static_cast<size_t>(c)]);
      add(std::span<const float>(picked));
    });
  });
  const auto center = static_cast<float>(mean), sigma = static_cast<float>(std);
  const Rng rng = key.tensor_rng(child.role, kRedraw);
  std::vector<float> noise(static_cast<size_t>(child.cols));
  visit_units(child, units, [&](int64_t r, std::span<const int64_t> columns) {
    rng.fill_normal(static_cast<uint64_t>(r * child.cols), noise.data(), noise.size());
    for (const int64_t c : columns) {
      child.row(r)[static_cast<size_t>(c)] = center + sigma * noise[static_cast<size_t>(c)];
    }
  });
}

void drop_units_moment(ExpertView moment, const ChildKey& key, const Params& params) {
  if (moment.role == Role::kExpertDownBias) return;
  visit_units(moment, dropped_units(moment, key, params), [&](int64_t r, std::span<const int64_t> columns) {
    for (const int64_t c : columns) moment.row(r)[static_cast<size_t>(c)] = 0.0f;
  });
}

}  // namespace

extern constinit const ExpertInit kDropUnits{
    .name = "drop_units",
    .apply = drop_units,
    .apply_moment = drop_units_moment,
    .params = kDropUnitsParams,
    .same_bytes = false,
    .same_function = false,
    .changes_biases = true,
    .summary = "a share of the intermediate units redrawn with the mean and std of what they replace",
    .source = "arXiv:2502.19261"};

namespace {

// -- permute_units ------------------------------------------------------------

/// Unit u becomes the former unit order[u].
void move_units(ExpertView m, const ChildKey& key) {
  if (m.role == Role::kExpertDownBias) return;
  const auto order = key.expert_rng(kPermutation).permutation(static_cast<uint32_t>(m.units()));
  if (m.role == Role::kExpertDown) {
    std::vector<float> before(static_cast<size_t>(m.cols));
    for (int64_t r = 0; r < m.rows; ++r) {
      const auto values = m.row(r);
      std::ranges::copy(values, before.begin());
      for (size_t u = 0; u < order.size(); ++u) values[u] = before[order[u]];
    }
    return;
  }
  const std::vector<float> before(m.values.begin(), m.values.end());
  for (size_t u = 0; u < order.size(); ++u) {
    const auto from = before.begin() + static_cast<std::ptrdiff_t>(order[u]) * m.cols;
    std::copy(from, from + m.cols, m.row(static_cast<int64_t>(u)).begin());
  }
}

void permute_units(ExpertView child, const ChildKey& key, const PartnerSource&, const Params&) {
  move_units(child, key);
}

void permute_units_moment(ExpertView moment, const ChildKey& key, const Params&) { move_units(moment, key); }

}  // namespace

extern constinit const ExpertInit kPermuteUnits{
    .name = "permute_units",
    .apply = permute_units,
    .apply_moment = permute_units_moment,
    .params = {},
    .same_bytes = false,
    .same_function = true,
    .changes_biases = true,
    .summary = "clone with its intermediate units in another order: the same function",
    .source = kExpertUpcycling};

}  // namespace coppice::upcycle
