#include <algorithm>
#include <optional>

#include "coppice/base/interrupt.h"
#include "coppice/base/rng.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/verify/originals_detail.h"

namespace coppice::verify::detail {

ExpertContents::ExpertContents(const models::ExpertTensors& tensors, int64_t layer, const ExpertFactors& factors,
                               size_t threads)
    : experts_(static_cast<size_t>(tensors.model().config.num_experts)), factors_(factors) {
  parallel_for(experts_.size(), threads, [&](size_t i) {
    check_interrupt();
    Expert& expert = experts_[i];
    expert.refs = matrices_of(tensors, layer, static_cast<int64_t>(i));
    for (const ExpertMatrixRef& ref : expert.refs) expert.contents.push_back(content_of(ref, factors_));
  });
}

std::vector<std::vector<float>> ExpertContents::samples(size_t expert) const {
  std::vector<std::vector<float>> out;
  for (const ExpertMatrixRef& ref : experts_[expert].refs) out.push_back(sample_of(ref, factors_));
  return out;
}

std::vector<uint64_t> ExpertContents::units(size_t expert) const {
  std::vector<uint64_t> units;
  for (size_t m = 0; m < matrices(); ++m) {
    const bool is_down = role(m) == families::Role::kExpertDown;
    if (!is_matrix(m) || role(m) == families::Role::kExpertDownBias) continue;
    const MatrixContent& content = experts_[expert].contents[m];
    const std::vector<uint32_t>& lines = is_down ? content.col_hashes : content.row_hashes;
    if (units.empty()) units.resize(lines.size(), 0);
    if (units.size() != lines.size()) return {};
    for (size_t u = 0; u < lines.size(); ++u) units[u] = splitmix64(units[u] ^ splitmix64(lines[u] + m));
  }
  return units;
}

size_t ExpertContents::parts() const {
  const std::vector<ExpertMatrixRef>& refs = experts_.front().refs;
  size_t count = 0;
  for (size_t i = 0; i < refs.size(); ++i) {
    const auto same_slot = [&](const ExpertMatrixRef& ref) { return ref.tensor.slot == refs[i].tensor.slot; };
    if (std::ranges::find_if(refs, same_slot) == refs.begin() + static_cast<std::ptrdiff_t>(i)) ++count;
  }
  return count;
}

size_t ExpertContents::parts_equal(const std::vector<LikenessOf>& of_matrix) const {
  const std::vector<ExpertMatrixRef>& refs = experts_.front().refs;
  size_t count = 0;
  for (size_t i = 0; i < refs.size(); ++i) {
    bool first = true, equal = true;
    for (size_t j = 0; j < refs.size(); ++j) {
      if (refs[j].tensor.slot != refs[i].tensor.slot) continue;
      first = first && j >= i;
      equal = equal && of_matrix[j].kind == Likeness::kEqual;
    }
    if (first && equal) ++count;
  }
  return count;
}

bool ExpertContents::equal(size_t expert, const ExpertContents& other, size_t expert_of_other) const {
  const auto &a = experts_[expert].contents, &b = other.experts_[expert_of_other].contents;
  return std::ranges::equal(a, b, [](const MatrixContent& x, const MatrixContent& y) { return x.hash == y.hash; });
}

namespace {

/// Finds originals one by one; each expert of the expanded model matches at most one original.
class OriginalSearch {
 public:
  OriginalSearch(const ExpertContents& before, const ExpertContents& after, const LayerRows& rows)
      : before_(before), after_(after), rows_(rows), owner_(after.count(), -1) {}

  std::vector<int64_t> run(VerifyResult& result) {
    std::vector<size_t> missing;
    for (size_t p = 0; p < before_.count(); ++p) {
      const auto child = first_free(p, [&](size_t c) { return after_.equal(c, before_, p) && rows_.equal(c, p); });
      child ? take(*child, p) : missing.push_back(p);
    }
    for (const size_t p : missing) report(p, result);
    return owner_;
  }

 private:
  void take(size_t child, size_t original) { owner_[child] = static_cast<int64_t>(original); }

  /// Tries the original's own position first, where most expansions keep it.
  template <class Matches>
  std::optional<size_t> first_free(size_t original, const Matches& matches) const {
    if (original < owner_.size() && owner_[original] < 0 && matches(original)) return original;
    for (size_t child = 0; child < owner_.size(); ++child) {
      if (owner_[child] < 0 && matches(child)) return child;
    }
    return std::nullopt;
  }

  int64_t equal_matrices(size_t child, size_t original) const {
    int64_t count = 0;
    for (size_t m = 0; m < before_.matrices(); ++m)
      count += after_.content(child, m).hash == before_.content(original, m).hash ? 1 : 0;
    return count;
  }

  /// Reports an expert with the original's router rows and some of its matrices, else one with its matrices and other
  /// rows.
  void report(size_t p, VerifyResult& result) {
    std::optional<size_t> nearest;
    for (size_t child = 0; child < owner_.size(); ++child) {
      if (owner_[child] >= 0 || !rows_.equal(child, p) || equal_matrices(child, p) == 0) continue;
      if (!nearest || equal_matrices(child, p) > equal_matrices(*nearest, p)) nearest = child;
    }
    if (nearest) return report_matrices(*nearest, p, result);
    if (const auto child = first_free(p, [&](size_t c) { return after_.equal(c, before_, p); })) {
      take(*child, p);
      return rows_.report_changed_original(*child, p, result);
    }
    result.problems.push_back(
        cat("'", before_.name(p, 0), "': the expanded model does not have this original expert unchanged"));
  }

  void report_matrices(size_t child, size_t p, VerifyResult& result) {
    take(child, p);
    for (size_t m = 0; m < before_.matrices(); ++m) {
      if (after_.content(child, m).hash == before_.content(p, m).hash) continue;
      result.problems.push_back(cat("'", after_.name(child, m), "': ", families::role_name(after_.role(m)),
                                    " of original ", p, " changed, but originals keep their bytes"));
    }
  }

  const ExpertContents& before_;
  const ExpertContents& after_;
  const LayerRows& rows_;
  std::vector<int64_t> owner_;
};

}  // namespace

std::vector<int64_t> find_originals(const ExpertContents& before, const ExpertContents& after, const LayerRows& rows,
                                    VerifyResult& result) {
  return OriginalSearch(before, after, rows).run(result);
}

}  // namespace coppice::verify::detail
