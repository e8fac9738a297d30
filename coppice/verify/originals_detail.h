#pragma once

#include <vector>

#include "coppice/verify/expert_content.h"
#include "coppice/verify/layer_rows_detail.h"
#include "coppice/verify/verify.h"

namespace coppice::verify::detail {

/// Hashes of every expert of a layer, matrix by matrix.
class ExpertContents {
 public:
  ExpertContents(const models::ExpertTensors& tensors, int64_t layer, const ExpertFactors& factors, size_t threads);

  size_t count() const { return experts_.size(); }
  size_t matrices() const { return experts_.empty() ? 0 : experts_.front().refs.size(); }
  const MatrixContent& content(size_t expert, size_t matrix) const { return experts_[expert].contents[matrix]; }
  const ExpertMatrixRef& matrix(size_t expert, size_t matrix) const { return experts_[expert].refs[matrix]; }
  const std::string& name(size_t expert, size_t matrix) const { return experts_[expert].refs[matrix].name; }
  families::Role role(size_t matrix) const { return experts_.front().refs[matrix].role; }
  bool is_vector(size_t matrix) const {
    return experts_.front().refs[matrix].is_matrix() && experts_.front().refs[matrix].is_vector();
  }
  bool is_matrix(size_t matrix) const { return experts_.front().refs[matrix].is_matrix(); }
  /// A hash of each intermediate unit: its rows of gate and up with their biases, and its column of down. Empty if the
  /// expert's matrices do not have the same number of units.
  std::vector<uint64_t> units(size_t expert) const;
  /// Sampled values of an expert's matrices.
  std::vector<std::vector<float>> samples(size_t expert) const;
  /// The number of tensors, or slices of stacked ones, of an expert; and the number of those that are equal.
  size_t parts() const;
  size_t parts_equal(const std::vector<LikenessOf>& of_matrix) const;
  bool equal(size_t expert, const ExpertContents& other, size_t expert_of_other) const;

 private:
  struct Expert {
    std::vector<ExpertMatrixRef> refs;
    std::vector<MatrixContent> contents;
  };
  std::vector<Expert> experts_;
  ExpertFactors factors_;
};

/// For each original, the index of the expert of `after` that is bit-equal with its router row and biases, or -1.
/// Reports problems of originals that are not found.
std::vector<int64_t> find_originals(const ExpertContents& before, const ExpertContents& after, const LayerRows& rows,
                                    VerifyResult& result);

}  // namespace coppice::verify::detail
