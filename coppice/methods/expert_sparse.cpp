#include <algorithm>
#include <cmath>
#include <utility>

#include "coppice/base/lane_sum.h"
#include "coppice/methods/expert_decompose_detail.h"
#include "coppice/methods/expert_rows_detail.h"
#include "coppice/methods/purpose.h"

namespace coppice::methods {
namespace {

using matrix::Dense;

constexpr int64_t kMostAtoms = 512;
constexpr int kIterations = 100;

constexpr ParamSpec kSparseCodeMixParams[] = {
    {.key = "ratio",
     .fallback = 0.3,
     .lo = 0.0,
     .hi = 1.0,
     .help = "share of the rows of codes that come from the other expert"},
    {.key = "penalty",
     .fallback = 0.1,
     .lo = 0.0,
     .hi = 100.0,
     .help = "sparsity: threshold of the codes, in units of the matrix's norm / columns"}};

double norm(std::span<const float> values) { return std::sqrt(dot(values, values)); }

/// A [rows, min(512, rows)] dictionary whose columns have norm 1 and random directions.
Dense random_dictionary(int64_t rows, const Rng& rng) {
  const int64_t atoms = std::min(kMostAtoms, rows);
  Dense dictionary{atoms, rows, std::vector<float>(static_cast<size_t>(atoms * rows))};
  rng.fill_normal(0, dictionary.values.data(), dictionary.values.size());
  for (int64_t a = 0; a < atoms; ++a) {
    const auto atom = std::span(dictionary.values).subspan(static_cast<size_t>(a * rows), static_cast<size_t>(rows));
    const double length = norm(atom);
    for (float& x : atom) x = static_cast<float>(x / length);
  }
  return matrix::transposed(dictionary);
}

matrix::RowFill sparse_code_mix(const matrix::MatrixRows& parent, const ChildKey& key,
                                const matrix::RowsSource& partner, const Params& params) {
  Dense own = whole(parent);
  const Dense from = whole(partner(key.partner()));
  const Dense dictionary = random_dictionary(parent.rows, key.tensor_rng(parent.role, kDictionary));
  const auto codes_of = [&](const Dense& m) {
    const double penalty = params.get("penalty") * norm(m.values) / static_cast<double>(m.cols);
    return matrix::sparse_codes(dictionary, m, penalty, kIterations);
  };
  const Dense codes = codes_of(own), others = codes_of(from);
  auto mixed = key.tensor_rng(parent.role, kMixed).permutation(static_cast<uint32_t>(dictionary.cols));
  mixed.resize(static_cast<size_t>(std::floor(params.get("ratio") * static_cast<double>(mixed.size()))));
  Dense change{codes.rows, codes.cols, std::vector<float>(codes.values.size(), 0.0f)};  // M - C
  for (const uint32_t row : mixed) {
    for (int64_t c = 0; c < codes.cols; ++c) change.at(row, c) = others.at(row, c) - codes.at(row, c);
  }
  const Dense difference = matrix::product(dictionary, change);
  for (size_t i = 0; i < difference.values.size(); ++i) own.values[i] += difference.values[i];
  return rows_of(std::move(own));
}

}  // namespace

extern constinit const ExpertInit kSparseCodeMix{
    .name = "sparse_code_mix",
    .child = sparse_code_mix,
    .apply_moment = nullptr,
    .params = kSparseCodeMixParams,
    .same_bytes = false,
    .same_function = false,
    .needs_partner = true,
    .holds_matrix = true,
    .summary = "sparse codes over a random dictionary, with some rows of codes taken from another expert",
    .source = kExpertUpcycling};

}  // namespace coppice::methods
