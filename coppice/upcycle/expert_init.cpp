#include "coppice/upcycle/expert_init.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "coppice/upcycle/lane_sum_detail.h"
#include "coppice/upcycle/purpose_detail.h"
#include "coppice/upcycle/table_detail.h"

namespace coppice::upcycle {
namespace {

using families::Role;

constexpr std::string_view kPaper = "arXiv:2604.19835";

std::span<float> row(ExpertView m, int64_t r) {
  return m.values.subspan(static_cast<size_t>(r * m.cols), static_cast<size_t>(m.cols));
}

// -- copy ---------------------------------------------------------------------

void copy(ExpertView, const ChildKey&, const PartnerSource&, const Params&) {}  // `child` holds the parent's values

// -- copy_noise ---------------------------------------------------------------

constexpr ParamSpec kCopyNoiseParams[] = {{.key = "lambda",
                                           .fallback = 0.01,
                                           .lo = 0.0,
                                           .hi = 10.0,
                                           .help = "std of the noise as a fraction of the matrix's std"}};

void copy_noise(ExpertView child, const ChildKey& key, const PartnerSource&, const Params& params) {
  const auto sigma = static_cast<float>(params.get("lambda") * mean_std(std::span<const float>(child.values)).std);
  const Rng rng = key.tensor_rng(child.role, kNoise);
  std::array<float, 4096> noise;
  for (size_t first = 0; first < child.values.size(); first += noise.size()) {
    const auto values = child.values.subspan(first, std::min(noise.size(), child.values.size() - first));
    rng.fill_normal(first, noise.data(), values.size());
    for (size_t i = 0; i < values.size(); ++i) values[i] += sigma * noise[i];
  }
}

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
  const auto units = dropped_units(child, key, params);
  std::vector<float> picked;
  const auto [mean, std] = mean_std<float>([&](auto add) {
    visit_units(child, units, [&](int64_t r, std::span<const int64_t> columns) {
      picked.clear();
      for (const int64_t c : columns) picked.push_back(row(child, r)[static_cast<size_t>(c)]);
      add(std::span<const float>(picked));
    });
  });
  const auto center = static_cast<float>(mean), sigma = static_cast<float>(std);
  const Rng rng = key.tensor_rng(child.role, kRedraw);
  std::vector<float> noise(static_cast<size_t>(child.cols));
  visit_units(child, units, [&](int64_t r, std::span<const int64_t> columns) {
    rng.fill_normal(static_cast<uint64_t>(r * child.cols), noise.data(), noise.size());
    for (const int64_t c : columns) {
      row(child, r)[static_cast<size_t>(c)] = center + sigma * noise[static_cast<size_t>(c)];
    }
  });
}

void drop_units_moment(ExpertView moment, const ChildKey& key, const Params& params) {
  visit_units(moment, dropped_units(moment, key, params), [&](int64_t r, std::span<const int64_t> columns) {
    for (const int64_t c : columns) row(moment, r)[static_cast<size_t>(c)] = 0.0f;
  });
}

// -- permute_units ------------------------------------------------------------

/// Unit u becomes the former unit order[u].
void move_units(ExpertView m, const ChildKey& key) {
  const auto order = key.expert_rng(kPermutation).permutation(static_cast<uint32_t>(m.units()));
  if (m.role == Role::kExpertDown) {
    std::vector<float> before(static_cast<size_t>(m.cols));
    for (int64_t r = 0; r < m.rows; ++r) {
      const auto values = row(m, r);
      std::ranges::copy(values, before.begin());
      for (size_t u = 0; u < order.size(); ++u) values[u] = before[order[u]];
    }
    return;
  }
  const std::vector<float> before(m.values.begin(), m.values.end());
  for (size_t u = 0; u < order.size(); ++u) {
    const auto from = before.begin() + static_cast<std::ptrdiff_t>(order[u]) * m.cols;
    std::copy(from, from + m.cols, row(m, static_cast<int64_t>(u)).begin());
  }
}

void permute_units(ExpertView child, const ChildKey& key, const PartnerSource&, const Params&) {
  move_units(child, key);
}

void permute_units_moment(ExpertView moment, const ChildKey& key, const Params&) { move_units(moment, key); }

// -----------------------------------------------------------------------------

constexpr ExpertInit kMethods[] = {
    {.name = "copy",
     .apply = copy,
     .apply_moment = nullptr,
     .params = {},
     .same_bytes = true,
     .same_function = true,
     .summary = "exact clone of the parent",
     .source = kPaper},
    {.name = "copy_noise",
     .apply = copy_noise,
     .apply_moment = nullptr,
     .params = kCopyNoiseParams,
     .same_bytes = false,
     .same_function = false,
     .summary = "clone plus Gaussian noise scaled to the matrix",
     .source = kPaper},
    {.name = "drop_units",
     .apply = drop_units,
     .apply_moment = drop_units_moment,
     .params = kDropUnitsParams,
     .same_bytes = false,
     .same_function = false,
     .summary = "a share of the intermediate units redrawn with the mean and std of what they replace",
     .source = "arXiv:2502.19261"},
    {.name = "permute_units",
     .apply = permute_units,
     .apply_moment = permute_units_moment,
     .params = {},
     .same_bytes = false,
     .same_function = true,
     .summary = "clone with its intermediate units in another order: the same function",
     .source = kPaper},
};

}  // namespace

Rng ChildKey::tensor_rng(families::Role role, uint32_t purpose) const {
  return Rng({.seed = seed,
              .layer = static_cast<uint32_t>(layer),
              .role = static_cast<uint32_t>(role),
              .parent = parent,
              .copy = stream_copy(num_experts, copy),
              .purpose = purpose});
}

Rng ChildKey::expert_rng(uint32_t purpose) const { return tensor_rng(Role::kExpertShared, purpose); }

std::span<const ExpertInit> expert_inits() { return kMethods; }
const ExpertInit& expert_init(std::string_view name) { return find_row(expert_inits(), "expert-init", name); }

}  // namespace coppice::upcycle
