#pragma once

// How router rows are made when a dense model is converted to a Mixture of Experts.

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/methods/params.h"

namespace coppice::methods {

struct NewRouter {
  std::string_view name;
  /// Fills the row of one virtual group (or expert) of a layer. nullptr: rows come from a file.
  void (*row)(uint64_t seed, int64_t layer, int64_t group, const Params& params, std::span<float> out);
  /// The standard deviation of the logits for inputs with unit variance in each of `dim` dimensions; for --calibrate.
  double (*logit_std)(int64_t dim, const Params& params);
  std::span<const ParamSpec> params;
  std::string_view summary, source;
};
std::span<const NewRouter> new_routers();
const NewRouter& new_router(std::string_view name);  // Throws Error{kUsage} with the nearest

/// Router rows read from a file, such as centroids of a layer's inputs.
///
/// A safetensors file with a tensor `router.LAYER` for each layer with experts, [groups, model_dim] (a row for each
/// virtual group) or [experts, model_dim], in F32, BF16 or F16.
class RouterRows {
 public:
  /// Throws   Error{kNotFound, kFormat, kNonFinite, kShape} naming file and tensor.
  static RouterRows read(const std::filesystem::path& path);

  /// The rows [experts, dim] of one layer. The file may hold a row that `experts_a_row` experts share once, or once for
  /// each.
  ///
  /// Throws   Error{kFormat} if the layer is missing, Error{kShape} if it has other sizes.
  std::vector<float> of(int64_t layer, int64_t experts, int64_t experts_a_row, int64_t dim) const;
  const std::string& digest() const { return digest_; }  ///< SHA-256 of names, shapes and values

 private:
  struct Rows {
    int64_t rows = 0, dim = 0;
    std::vector<float> values;
  };
  std::string path_, digest_;
  std::map<int64_t, Rows> layers_;
};

}  // namespace coppice::methods
