#include <algorithm>
#include <cmath>
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
constexpr double kEqual = 2;          ///< nearness of rows with the same bits
constexpr double kRecognised = 0.2;   ///< cosine above which a row is said to derive from another
constexpr double kOrthogonal = 0.02;  ///< cosine (as large as rounding to bf16 leaves it) of an orthogonal router row
constexpr double kSameNorm = 0.01;
constexpr double kOtherRow = 0.05;  ///< a row this much nearer to another original's has been swapped
constexpr double kSurelyRow = 0.9;

bool same_row(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

double norm(std::span<const float> row) {
  double sum = 0;
  for (const float x : row) sum += static_cast<double>(x) * x;
  return std::sqrt(sum);
}

std::optional<RowsOfRole> read_rows(const Model& model, Role role, int64_t layer) {
  for (const families::TensorSlot& slot : model.slots) {
    if (slot.layer != layer || slot.role() != role) continue;
    RowsOfRole rows{slot.name, model.checkpoint.read_f32(slot.name), 1};
    rows.cols = rows.values.size() / static_cast<size_t>(model.config.router_rows());
    return rows;
  }
  return std::nullopt;
}

/// Values times `factor`, rounded as they are stored.
void multiply(RowsOfRole& rows, double factor, io::Dtype dtype) {
  for (float& x : rows.values) x = static_cast<float>(factor * x);
  std::vector<std::byte> stored(rows.values.size() * io::dtype_bytes(dtype));
  io::from_f32(dtype, rows.values, stored);
  io::to_f32(dtype, stored, rows.values);
}

}  // namespace

LayerRows::LayerRows(const Model& before, const Model& after, int64_t layer, double selection_bias)
    : experts_before_(static_cast<size_t>(before.config.num_experts)),
      experts_after_(static_cast<size_t>(after.config.num_experts)) {
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
  return same_row(a, b) ? kEqual : cosine(a, b);
}

void LayerRows::report_changed_original(size_t child, size_t original, VerifyResult& result) const {
  for (const auto& [role, pair] : rows_) {
    if (same_row(pair.after.row(child), pair.before.row(original))) continue;
    std::string problem = cat("'", pair.after.name, "': row ", child, " is not that of original ", original,
                              ", which expert ", child, " is; originals keep their rows");
    for (size_t other = 0; other < experts_before_ && pair.before.cols > 1; ++other) {
      if (same_row(pair.after.row(child), pair.before.row(other)))
        problem = cat("'", pair.after.name, "': row ", child, " is that of original ", other, ", but expert ", child,
                      " is original ", original);
    }
    result.problems.push_back(std::move(problem));
  }
}

std::string LayerRows::row_problem(const Pair& router, size_t child, size_t parent) const {
  const double near = nearness(child, parent);
  if (near == kEqual) return {};
  const std::string& name = router.after.name;
  const auto is = router.after.row(child), was = router.before.row(parent);
  size_t changed = 0;
  for (size_t i = 0; i < is.size(); ++i) changed += is[i] == was[i] ? 0 : 1;
  if (2 * changed < is.size()) {  // every method changes all of a row, or nothing
    return cat("'", name, "': row ", child, " differs in ", changed, " values from that of original ", parent,
               ", whose child expert ", child, " is");
  }
  for (size_t p = 0; p < experts_before_; ++p) {
    const double other = nearness(child, p);
    if (other >= kSurelyRow && other > near + kOtherRow) {
      return cat("'", name, "': row ", child, " is that of original ", p, ", but expert ", child,
                 " is a child of original ", parent);
    }
  }
  if (near > kRecognised) return {};
  // The router method `orthogonal` keeps the parent's norm and nothing else.
  const double length = norm(router.after.row(child)) / norm(router.before.row(parent));
  if (std::abs(near) < kOrthogonal && std::abs(length - 1) < kSameNorm) return {};
  return cat("'", name, "': row ", child, " is not near that of original ", parent, ", whose child expert ", child,
             " is (cosine ", number_text(near), ")");
}

void LayerRows::check_bias(const Pair& bias, const std::vector<int64_t>& parents, const std::vector<bool>& is_original,
                           VerifyResult& result) const {
  for (size_t child = 0; child < parents.size(); ++child) {
    if (parents[child] < 0 || is_original[child]) continue;
    const float was = bias.before.row(static_cast<size_t>(parents[child]))[0], is = bias.after.row(child)[0];
    if (same_row({&was, 1}, {&is, 1})) continue;
    ++result.biases_changed;
    if (!std::isfinite(is)) {
      result.problems.push_back(cat("'", bias.after.name, "': the value of expert ", child, " is not finite"));
    } else {
      result.largest_bias_change =
          std::max(result.largest_bias_change, std::abs(static_cast<double>(is) - static_cast<double>(was)));
    }
  }
}

void LayerRows::check_copies(const std::vector<int64_t>& parents, const std::vector<bool>& is_original,
                             VerifyResult& result) const {
  for (const auto& [role, pair] : rows_) {
    const auto behind = [](const RowsOfRole& rows, size_t experts) {
      return std::span(rows.values).subspan(experts * rows.cols);
    };
    if (!same_row(behind(pair.before, experts_before_), behind(pair.after, experts_after_))) {
      result.problems.push_back(
          cat("'", pair.after.name, "': the rows behind those of the ", experts_after_, " experts changed"));
    }
    if (role == Role::kRouterBias || role == Role::kSelectionBias) {
      check_bias(pair, parents, is_original, result);
      continue;
    }
    for (size_t child = 0; child < parents.size(); ++child) {
      if (parents[child] < 0) continue;
      const auto parent = static_cast<size_t>(parents[child]);
      const bool same = same_row(pair.after.row(child), pair.before.row(parent));
      if (role == Role::kRouter) ++(same ? result.router_rows_equal : result.router_rows_changed);
      if (same || is_original[child]) continue;
      std::string problem;
      if (role == Role::kRouter) {
        problem = row_problem(pair, child, parent);
      } else {
        problem = cat("'", pair.after.name, "': row ", child, " is not that of original ", parent,
                      ", whose child expert ", child, " is");
      }
      if (!problem.empty()) result.problems.push_back(std::move(problem));
    }
  }
}

}  // namespace coppice::verify::detail
