#include "coppice/methods/new_router.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "coppice/base/error.h"
#include "coppice/base/find_row.h"
#include "coppice/base/json_fields.h"
#include "coppice/base/rng.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/families/family.h"
#include "coppice/io/safetensors.h"
#include "coppice/methods/children.h"
#include "coppice/methods/purpose.h"

namespace coppice::methods {
namespace {

constexpr std::string_view kUpcycling = "arXiv:2410.07524";
constexpr std::string_view kNamePrefix = "router.";

constexpr ParamSpec kRandomParams[] = {
    {.key = "std", .fallback = 0.02, .lo = 0.0, .hi = 10.0, .help = "standard deviation of the rows"}};

void random_row(uint64_t seed, int64_t layer, int64_t group, const Params& params, std::span<float> out) {
  const Rng rng({.seed = seed,
                 .layer = static_cast<uint32_t>(layer),
                 .role = static_cast<uint32_t>(families::Role::kRouter),
                 .parent = static_cast<uint32_t>(group),
                 .purpose = kNewRow});
  rng.fill_normal(0, out.data(), out.size());
  const auto std = static_cast<float>(params.get("std"));
  for (float& x : out) x *= std;
}

double random_logit_std(int64_t dim, const Params& params) {
  return params.get("std") * std::sqrt(static_cast<double>(dim));
}

void zero_row(uint64_t, int64_t, int64_t, const Params&, std::span<float> out) { std::ranges::fill(out, 0.0f); }
double zero_logit_std(int64_t, const Params&) { return 0; }

constexpr std::array kRouters = {
    NewRouter{.name = "random",
              .row = random_row,
              .logit_std = random_logit_std,
              .params = kRandomParams,
              .summary = "random, N(0, std); the experts of a virtual group share one row",
              .source = kUpcycling},
    NewRouter{
        .name = "zero",
        .row = zero_row,
        .logit_std = zero_logit_std,
        .params = {},
        .summary = "zeros: all experts tie for every token, so the first K are used until training changes the rows",
        .source = kUpcycling},
    NewRouter{.name = "rows",
              .row = nullptr,
              .logit_std = nullptr,
              .params = {},
              .summary = "read from the file of --router-rows, such as the output of `coppice cluster`",
              .source = {}},
};

}  // namespace

std::span<const NewRouter> new_routers() { return kRouters; }
const NewRouter& new_router(std::string_view name) { return find_row(new_routers(), "router", name); }

RouterRows RouterRows::read(const std::filesystem::path& path) {
  const auto file = io::SafetensorsFile::open(path);
  RouterRows out;
  out.path_ = path.string();
  Sha256 digest;
  for (const io::TensorInfo& info : file.tensors()) {
    const auto subject = [&] { return cat(path, ": '", info.name, "'"); };
    if (!info.name.starts_with(kNamePrefix)) {
      throw Error(
          ErrorCode::kFormat,
          cat(subject(), ": is not a file of router rows; wanted tensors with the names router.0, router.1 ..."));
    }
    const int64_t layer = layer_from_key(std::string_view(info.name).substr(kNamePrefix.size()), subject());
    if (info.shape.size() != 2 || !io::is_float(info.dtype)) {
      throw Error(ErrorCode::kShape, cat(subject(), ": ", io::dtype_name(info.dtype), " ", shape_text(info.shape),
                                         "; wanted F32, BF16 or F16 of [groups, model dimension]"));
    }
    Rows& rows = out.layers_[layer];
    rows = {info.shape[0], info.shape[1], std::vector<float>(static_cast<size_t>(info.elements()))};
    io::to_f32(info.dtype, file.data(info), rows.values);
    if (!std::ranges::all_of(rows.values, [](float x) { return std::isfinite(x); })) {
      throw Error(ErrorCode::kNonFinite, cat(subject(), ": has NaN or infinity; wanted finite values"));
    }
  }
  for (const auto& [layer, rows] : out.layers_) {
    digest.add(cat(layer, ":", rows.rows, "x", rows.dim, "\n"));
    digest.add(std::as_bytes(std::span(rows.values)));
  }
  out.digest_ = digest.hex();
  return out;
}

std::vector<float> RouterRows::of(int64_t layer, int64_t experts, int64_t experts_a_row, int64_t dim) const {
  const auto found = layers_.find(layer);
  if (found == layers_.end()) {
    throw Error(ErrorCode::kFormat,
                cat(path_, ": no rows for layer ", layer, "; wanted a tensor '", kNamePrefix, layer, "'"));
  }
  const Rows& rows = found->second;
  const bool of_groups = rows.rows * experts_a_row == experts;
  if (rows.dim != dim || (!of_groups && rows.rows != experts)) {
    throw Error(ErrorCode::kShape, cat(path_, ": '", kNamePrefix, layer, "' is [", rows.rows, ", ", rows.dim,
                                       "]; wanted [", experts / experts_a_row, ", ", dim, "], a row for each virtual ",
                                       "group, or [", experts, ", ", dim, "]"));
  }
  std::vector<float> out(static_cast<size_t>(experts * dim));
  for (int64_t expert = 0; expert < experts; ++expert) {
    const int64_t row = of_groups ? expert / experts_a_row : expert;
    std::copy_n(rows.values.begin() + row * dim, dim, out.begin() + expert * dim);
  }
  return out;
}

}  // namespace coppice::methods
