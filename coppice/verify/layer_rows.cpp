#include <algorithm>
#include <cstring>
#include <optional>

#include "coppice/base/text.h"
#include "coppice/verify/expert_content.h"
#include "coppice/verify/layer_rows_detail.h"

namespace coppice::verify::detail {
namespace {

using families::Model;
using families::Role;

constexpr Role kRowRoles[] = {Role::kRouter, Role::kRouterBias, Role::kSelectionBias, Role::kExpertScale,
                              Role::kAttentionRouter};

std::optional<RowsOfRole> read_rows(const Model& model, Role role, int64_t layer) {
  for (const families::TensorSlot& slot : model.slots) {
    if (slot.layer != layer || slot.role() != role) continue;
    RowsOfRole rows{slot.name, model.checkpoint.read_f32(slot.name), 1};
    rows.cols = rows.values.size() / static_cast<size_t>(model.config.rows_of(role));
    return rows;
  }
  return std::nullopt;
}

/// Multiplies values by `factor` and rounds to the stored dtype.
void multiply(RowsOfRole& rows, double factor, io::Dtype dtype) {
  for (float& x : rows.values) x = static_cast<float>(factor * x);
  std::vector<std::byte> stored(rows.values.size() * io::dtype_bytes(dtype));
  io::from_f32(dtype, rows.values, stored);
  io::to_f32(dtype, stored, rows.values);
}

}  // namespace

bool same_row(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

LayerRows::LayerRows(const Model& before, const Model& after, int64_t layer, double selection_bias)
    : experts_before_(static_cast<size_t>(before.config.num_experts)) {
  for (const Role role : kRowRoles) {
    auto was = read_rows(before, role, layer), is = read_rows(after, role, layer);
    if (!was || !is) continue;
    if (role == Role::kSelectionBias && selection_bias != 1)
      multiply(*was, selection_bias, before.checkpoint.at(was->name).info->dtype);
    rows_.emplace(role, Pair{std::move(*was), std::move(*is)});
  }
}

bool LayerRows::has_routers() const { return rows_.contains(Role::kRouter); }

bool LayerRows::equal(size_t child, size_t original) const {
  return std::ranges::all_of(rows_, [&](const auto& pair) {
    return same_row(pair.second.after.row(child), pair.second.before.row(original));
  });
}

double LayerRows::nearness(size_t child, size_t original) const {
  const Pair& router = rows_.at(Role::kRouter);
  const auto a = router.after.row(child), b = router.before.row(original);
  return same_row(a, b) ? kEqualRows : cosine(a, b);
}

void LayerRows::report_changed_original(size_t child, size_t original, VerifyResult& result) const {
  for (const auto& [role, pair] : rows_) {
    if (same_row(pair.after.row(child), pair.before.row(original))) continue;
    std::string problem = cat("'", pair.after.name, "': row ", child, " changed; expert ", child, " is original ",
                              original, ", and originals keep their rows");
    for (size_t other = 0; other < experts_before_ && pair.before.cols > 1; ++other) {
      if (same_row(pair.after.row(child), pair.before.row(other)))
        problem = cat("'", pair.after.name, "': row ", child, " is that of original ", other, ", but expert ", child,
                      " is original ", original);
    }
    result.problems.push_back(std::move(problem));
  }
}

}  // namespace coppice::verify::detail
