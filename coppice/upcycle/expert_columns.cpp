// Methods that act on the columns of each matrix by itself.

#include <algorithm>
#include <cmath>

#include "coppice/upcycle/expert_rows_detail.h"
#include "coppice/upcycle/lane_sum_detail.h"
#include "coppice/upcycle/purpose_detail.h"

namespace coppice::upcycle {
namespace {

// -- drop_upcycle -------------------------------------------------------------

enum Redraw { kXavier = 0, kKaiming = 1, kNormal = 2 };

constexpr ParamSpec kDropUpcycleParams[] = {
    {.key = "ratio", .fallback = 0.5, .lo = 0.0, .hi = 1.0, .help = "share of the columns that is redrawn"},
    {.key = "init",
     .fallback = kXavier,
     .lo = kXavier,
     .hi = kNormal,
     .help = "0: xavier, uniform to sqrt(6/(rows+columns)); 1: kaiming, uniform to sqrt(6/columns); 2: normal, the "
             "matrix's std",
     .is_whole = true}};

/// The columns that this child redraws, rising.
std::vector<uint32_t> dropped_columns(const ExpertView& view, const ChildKey& key, const Params& params) {
  auto columns = key.tensor_rng(view.role, kColumns).permutation(static_cast<uint32_t>(view.cols));
  columns.resize(static_cast<size_t>(std::floor(params.get("ratio") * static_cast<double>(view.cols))));
  std::ranges::sort(columns);
  return columns;
}

void drop_upcycle(ExpertView child, const ChildKey& key, const PartnerSource&, const Params& params) {
  const auto columns = dropped_columns(child, key, params);
  const Rng rng = key.tensor_rng(child.role, kRedraw);
  const auto redraw = static_cast<Redraw>(params.get("init"));
  const auto rows = static_cast<double>(child.rows), cols = static_cast<double>(child.cols);
  const double size = redraw == kXavier    ? std::sqrt(6.0 / (rows + cols))
                      : redraw == kKaiming ? std::sqrt(6.0 / cols)
                                           : mean_std(std::span<const float>(child.values)).std;
  const auto scale = static_cast<float>(size);
  std::vector<float> drawn(static_cast<size_t>(child.cols));
  for (int64_t r = 0; r < child.rows; ++r) {
    const auto first = static_cast<uint64_t>(r * child.cols);
    if (redraw == kNormal) {
      rng.fill_normal(first, drawn.data(), drawn.size());
    } else {
      rng.fill_signed_uniform(first, drawn.data(), drawn.size());
    }
    const auto values = child.row(r);
    for (const uint32_t c : columns) values[c] = scale * drawn[c];
  }
}

void drop_upcycle_moment(ExpertView moment, const ChildKey& key, const Params& params) {
  const auto columns = dropped_columns(moment, key, params);
  for (int64_t r = 0; r < moment.rows; ++r) {
    const auto values = moment.row(r);
    for (const uint32_t c : columns) values[c] = 0.0f;
  }
}

// -- shuffle_columns ----------------------------------------------------------

/// Column c becomes the former column order[c].
void move_columns(ExpertView m, const ChildKey& key) {
  const auto order = key.tensor_rng(m.role, kPermutation).permutation(static_cast<uint32_t>(m.cols));
  std::vector<float> before(static_cast<size_t>(m.cols));
  for (int64_t r = 0; r < m.rows; ++r) {
    const auto values = m.row(r);
    std::ranges::copy(values, before.begin());
    for (size_t c = 0; c < order.size(); ++c) values[c] = before[order[c]];
  }
}

void shuffle_columns(ExpertView child, const ChildKey& key, const PartnerSource&, const Params&) {
  move_columns(child, key);
}

void shuffle_columns_moment(ExpertView moment, const ChildKey& key, const Params&) { move_columns(moment, key); }

}  // namespace

extern constinit const ExpertInit kDropUpcycle{.name = "drop_upcycle",
                                               .apply = drop_upcycle,
                                               .apply_moment = drop_upcycle_moment,
                                               .params = kDropUpcycleParams,
                                               .same_bytes = false,
                                               .same_function = false,
                                               .summary = "a share of each matrix's columns drawn anew",
                                               .source = kExpertUpcycling};

extern constinit const ExpertInit kShuffleColumns{.name = "shuffle_columns",
                                                  .apply = shuffle_columns,
                                                  .apply_moment = shuffle_columns_moment,
                                                  .params = {},
                                                  .same_bytes = false,
                                                  .same_function = false,
                                                  .summary = "the columns of each matrix in another order",
                                                  .source = kExpertUpcycling};

}  // namespace coppice::upcycle
