#include "coppice/step/layer_metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "coppice/base/check.h"
#include "coppice/base/lane_sum.h"
#include "coppice/kernels/parallel.h"
#include "coppice/nn/host.h"

namespace coppice::step {
namespace {

std::span<const int64_t> integers(const at::Tensor& t) { return nn::host_values<int64_t>(t); }

/// Pairs of every copy and its parent's first child.
std::vector<std::pair<size_t, size_t>> copies_and_firsts(std::span<const uint32_t> parents) {
  std::vector<std::pair<size_t, size_t>> out;
  std::vector<size_t> first(parents.size(), parents.size());
  for (size_t e = 0; e < parents.size(); ++e) {
    size_t& seen = first.at(parents[e]);
    if (seen == parents.size()) {
      seen = e;
    } else {
      out.emplace_back(e, seen);
    }
  }
  return out;
}

/// The overlap of two sorted lists of ids as distributions.
double mixture_overlap(const std::vector<int64_t>& a, const std::vector<int64_t>& b) {
  double sum = 0;
  size_t i = 0, j = 0;
  while (i < a.size() && j < b.size()) {
    const int64_t id = std::min(a[i], b[j]);
    const auto count = [id](const std::vector<int64_t>& ids, size_t& at) {
      const size_t begin = at;
      while (at < ids.size() && ids[at] == id) ++at;
      return static_cast<double>(at - begin) / static_cast<double>(ids.size());
    };
    const double of_a = count(a, i), of_b = count(b, j);
    sum += std::min(of_a, of_b);
  }
  return sum;
}

}  // namespace

double max_violation(const at::Tensor& count_E) {
  const auto counts = integers(count_E);
  const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  if (total == 0) return 0;
  const double mean = static_cast<double>(total) / static_cast<double>(counts.size());
  return static_cast<double>(*std::ranges::max_element(counts)) / mean - 1.0;
}

double load_entropy(const at::Tensor& count_E) {
  const auto counts = integers(count_E);
  const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  if (total == 0 || counts.size() == 1) return 1;
  double entropy = 0;
  for (const int64_t count : counts) {
    const double share = static_cast<double>(count) / total;
    if (share > 0) entropy -= share * std::log(share);
  }
  return entropy / std::log(static_cast<double>(counts.size()));
}

double dead_share(const at::Tensor& count_E) {
  const auto counts = integers(count_E);
  return static_cast<double>(std::ranges::count(counts, 0)) / static_cast<double>(counts.size());
}

SiblingCounts count_parents(const at::Tensor& index_TK, std::span<const uint32_t> parents) {
  const auto index = integers(index_TK);
  const auto tokens = static_cast<size_t>(index_TK.size(0)), choices = static_cast<size_t>(index_TK.size(1));
  int64_t different = 0;
  for (size_t t = 0; t < tokens; ++t) {
    const auto chosen = index.subspan(t * choices, choices);
    for (size_t k = 0; k < choices; ++k) {
      const auto parent = [&](size_t slot) { return parents[static_cast<size_t>(chosen[slot])]; };
      bool is_new = true;
      for (size_t before = 0; before < k; ++before) is_new = is_new && parent(before) != parent(k);
      different += is_new;
    }
  }
  return {different, index_TK.size(0)};
}

double effective_top_k(const at::Tensor& index_TK, std::span<const uint32_t> parents) {
  const auto [different, tokens] = count_parents(index_TK, parents);
  return static_cast<double>(different) / static_cast<double>(tokens);
}

TokensById::TokensById(const at::Tensor& token_T) {
  for (const int64_t id : integers(token_T)) tokens_.push_back({id, std::ssize(tokens_)});
  std::ranges::stable_sort(tokens_, {}, &Token::id);
}

IdsByExpert ids_by_expert(const at::Tensor& index_TK, const TokensById& tokens, size_t num_experts) {
  const auto index = integers(index_TK);
  const auto choices = static_cast<size_t>(index_TK.size(1));
  IdsByExpert ids(num_experts);
  for (const auto& [id, position] : tokens.tokens()) {
    for (const int64_t expert : index.subspan(static_cast<size_t>(position) * choices, choices)) {
      ids[static_cast<size_t>(expert)].push_back(id);
    }
  }
  return ids;
}

SiblingOverlap compare_siblings(const IdsByExpert& ids, std::span<const uint32_t> parents) {
  SiblingOverlap out;
  for (const auto& [copy, first] : copies_and_firsts(parents)) {
    if (ids[copy].empty() || ids[first].empty()) continue;
    out.sum += mixture_overlap(ids[copy], ids[first]);
    ++out.pairs;
  }
  return out;
}

std::optional<double> routing_overlap(const at::Tensor& index_TK, const TokensById& tokens,
                                      std::span<const uint32_t> parents) {
  const auto [sum, pairs] = compare_siblings(ids_by_expert(index_TK, tokens, parents.size()), parents);
  if (pairs == 0) return std::nullopt;
  return sum / static_cast<double>(pairs);
}

double weight_cosine(const ExpertWeights& a, const ExpertWeights& b) {
  COPPICE_CHECK(a.size() == b.size());
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += dot(a[i], b[i]);
    aa += dot(a[i], a[i]);
    bb += dot(b[i], b[i]);
  }
  return ab / std::sqrt(aa * bb);
}

std::optional<double> sibling_cosine(const at::Tensor& fc1, const at::Tensor& fc2, std::span<const uint32_t> parents) {
  const auto pairs = copies_and_firsts(parents);
  if (pairs.empty()) return std::nullopt;
  const std::array<at::Tensor, 2> parts{nn::on_host(fc1), nn::on_host(fc2)};
  const auto weights_of = [&](size_t expert) {
    ExpertWeights out;
    for (const at::Tensor& part : parts) {
      const auto size = static_cast<size_t>(part.numel()) / parents.size();
      out.emplace_back(nn::host_values<float>(part).subspan(expert * size, size));
    }
    return out;
  };
  std::vector<double> cosine(pairs.size());
  kernels::parallel_tasks(static_cast<int64_t>(pairs.size()), [&](int64_t pair) {
    const auto i = static_cast<size_t>(pair);
    cosine[i] = weight_cosine(weights_of(pairs[i].first), weights_of(pairs[i].second));
  });
  return std::accumulate(cosine.begin(), cosine.end(), 0.0) / static_cast<double>(pairs.size());
}

}  // namespace coppice::step
