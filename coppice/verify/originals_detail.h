#pragma once

#include <vector>

#include "coppice/verify/expert_content.h"
#include "coppice/verify/layer_rows_detail.h"
#include "coppice/verify/verify.h"

namespace coppice::verify::detail {

/// What can be recognised of every expert of a layer, matrix by matrix.
class ExpertContents {
 public:
  ExpertContents(const models::ExpertParts& parts, int64_t layer, const ExpertFactors& factors, size_t threads);

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
  /// A hash of each intermediate unit: its row of gate and up, its biases there, its column of down. Empty where the
  /// expert has no matrices of as many units.
  std::vector<uint64_t> units(size_t expert) const;
  /// Sampled values of an expert's matrices.
  std::vector<std::vector<float>> samples(size_t expert) const;
  /// Tensors, or slices of stacked ones, that an expert has; and those of which all is equal.
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

/// The expert of `after` that is each original, bit for bit with its router row and biases: [N], its number or -1.
/// Reports what is wrong with originals that are not there so.
std::vector<int64_t> find_originals(const ExpertContents& before, const ExpertContents& after, const LayerRows& rows,
                                    VerifyResult& result);

}  // namespace coppice::verify::detail
