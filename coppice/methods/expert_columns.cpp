// Methods that act on the columns of each matrix independently.

#include <algorithm>
#include <cmath>

#include "coppice/methods/expert_rows_detail.h"
#include "coppice/methods/purpose.h"

namespace coppice::methods {
namespace {

// -- drop_upcycle -------------------------------------------------------------

enum Redraw { kXavier = 0, kKaiming = 1, kNormal = 2 };

constexpr ParamSpec kDropUpcycleParams[] = {
    {.key = "ratio", .fallback = 0.5, .lo = 0.0, .hi = 1.0, .help = "share of the columns that is reinitialised"},
    {.key = "init",
     .fallback = kXavier,
     .lo = kXavier,
     .hi = kNormal,
     .help = "0: xavier, uniform to sqrt(6/(rows+columns)); 1: kaiming, uniform to sqrt(6/columns); 2: normal, the "
             "matrix's std",
     .is_whole = true}};

/// The columns that this child reinitialises, in rising order.
std::vector<uint32_t> dropped_columns(families::Role role, int64_t cols, const ChildKey& key, const Params& params) {
  auto columns = key.tensor_rng(role, kColumns).permutation(static_cast<uint32_t>(cols));
  columns.resize(static_cast<size_t>(std::floor(params.get("ratio") * static_cast<double>(cols))));
  std::ranges::sort(columns);
  return columns;
}

matrix::RowFill drop_upcycle(const matrix::MatrixRows& parent, const ChildKey& key, const matrix::RowsSource&,
                             const Params& params) {
  const auto redraw = static_cast<Redraw>(params.get("init"));
  const auto rows = static_cast<double>(parent.rows), cols = static_cast<double>(parent.cols);
  const double size = redraw == kXavier    ? std::sqrt(6.0 / (rows + cols))
                      : redraw == kKaiming ? std::sqrt(6.0 / cols)
                                           : matrix::mean_std(parent).std;
  return [parent, redraw, columns = dropped_columns(parent.role, parent.cols, key, params),
          rng = key.tensor_rng(parent.role, kRedraw),
          scale = static_cast<float>(size)](int64_t first, std::span<float> out) {
    parent.read(first, out);
    const auto width = static_cast<size_t>(parent.cols);
    std::vector<float> drawn(width);
    for (size_t row = 0; row < out.size(); row += width, ++first) {
      const auto element = static_cast<uint64_t>(first * parent.cols);
      if (redraw == kNormal) {
        rng.fill_normal(element, drawn.data(), width);
      } else {
        rng.fill_signed_uniform(element, drawn.data(), width);
      }
      for (const uint32_t c : columns) out[row + c] = scale * drawn[c];
    }
  };
}

void drop_upcycle_moment(ExpertView moment, const ChildKey& key, const Params& params) {
  const auto columns = dropped_columns(moment.role, moment.cols, key, params);
  for (int64_t r = 0; r < moment.rows; ++r) {
    const auto values = moment.row(r);
    for (const uint32_t c : columns) values[c] = 0.0f;
  }
}

// -- shuffle_columns ----------------------------------------------------------

std::vector<uint32_t> column_order(families::Role role, int64_t cols, const ChildKey& key) {
  return key.tensor_rng(role, kPermutation).permutation(static_cast<uint32_t>(cols));
}

/// Replaces column c by the earlier column order[c].
void move_columns(std::span<float> rows, const std::vector<uint32_t>& order) {
  std::vector<float> before(order.size());
  for (size_t row = 0; row < rows.size(); row += order.size()) {
    std::ranges::copy(rows.subspan(row, order.size()), before.begin());
    for (size_t c = 0; c < order.size(); ++c) rows[row + c] = before[order[c]];
  }
}

matrix::RowFill shuffle_columns(const matrix::MatrixRows& parent, const ChildKey& key, const matrix::RowsSource&,
                                const Params&) {
  return [parent, order = column_order(parent.role, parent.cols, key)](int64_t first, std::span<float> out) {
    parent.read(first, out);
    move_columns(out, order);
  };
}

void shuffle_columns_moment(ExpertView moment, const ChildKey& key, const Params&) {
  move_columns(moment.values, column_order(moment.role, moment.cols, key));
}

}  // namespace

extern constinit const ExpertInit kDropUpcycle{.name = "drop_upcycle",
                                               .child = drop_upcycle,
                                               .apply_moment = drop_upcycle_moment,
                                               .params = kDropUpcycleParams,
                                               .same_bytes = false,
                                               .same_function = false,
                                               .summary = "a share of each matrix's columns reinitialised at random",
                                               .source = kExpertUpcycling};

extern constinit const ExpertInit kShuffleColumns{.name = "shuffle_columns",
                                                  .child = shuffle_columns,
                                                  .apply_moment = shuffle_columns_moment,
                                                  .params = {},
                                                  .same_bytes = false,
                                                  .same_function = false,
                                                  .summary = "the columns of each matrix in a random order",
                                                  .source = kExpertUpcycling};

}  // namespace coppice::methods
