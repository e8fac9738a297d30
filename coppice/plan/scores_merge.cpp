// Merges several runs of `score` into one.

#include <cmath>
#include <set>

#include "coppice/base/error.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/families/limits.h"
#include "coppice/plan/utility.h"

namespace coppice::plan {
namespace {

constexpr double kSameWeights = 1e-9;  // relative: the same weights, summed in the same order

[[noreturn]] void refuse(size_t run, const std::string& problem) {
  throw Error(ErrorCode::kUsage, cat("merge: scores ", run + 1, ": ", problem));
}

void check_alike(const Scores& first, const Scores& other, size_t run) {
  if (other.model_digest != first.model_digest || other.layers != first.layers || other.experts != first.experts) {
    refuse(run, "are of another model than the first; wanted runs over one model");
  }
  if (other.batch_tokens != first.batch_tokens) {
    refuse(run, cat("have batches of ", other.batch_tokens, " tokens, but the first has ", first.batch_tokens,
                    "; wanted the same (a batch's gradient depends on its size)"));
  }
  if (other.reset_attention != first.reset_attention) {
    refuse(run, cat("were made ", other.reset_attention ? "with" : "without", " --reset-attention, ", "the first ",
                    first.reset_attention ? "with" : "without", " it; wanted the same"));
  }
}

/// The digests of the runs that `scores` contains.
std::vector<std::string> runs_of(const Scores& scores) {
  if (!scores.runs.empty()) return scores.runs;
  Sha256 sha;
  sha.add(scores.to_json().dump());
  return {sha.hex()};
}

template <class Map>
void add(Map& sum, const Map& other, size_t run, std::string_view metric) {
  for (auto& [layer, values] : sum) {
    const auto found = other.find(layer);
    if (found == other.end())
      refuse(run, cat("'", metric, "' has no layer ", layer, "; wanted the layers of the first"));
    if constexpr (std::is_same_v<typename Map::mapped_type, double>) {
      values += found->second;
    } else {
      for (size_t e = 0; e < values.size(); ++e) values[e] += found->second.at(e);
    }
  }
}

// A metric without sums of squares does not depend on batches but only on the model, so it must be the same.
void check_same(const MetricSums& sums, const MetricSums& other, size_t run, std::string_view metric) {
  for (const auto& [layer, values] : sums.sum) {
    const auto found = other.sum.find(layer);
    const bool there = found != other.sum.end();
    for (size_t e = 0; e < values.size(); ++e) {
      if (there && std::abs(values[e] - found->second.at(e)) <= kSameWeights * std::abs(values[e])) continue;
      refuse(run, cat("'", metric, "' of layer ", layer, ", expert ", e,
                      " differs from the first's; wanted runs over one model"));
    }
  }
}

void merge_sums(MetricSums& sums, const MetricSums& other, size_t run, std::string_view metric) {
  if (sums.sum_sq.empty()) return check_same(sums, other, run, metric);
  add(sums.sum, other.sum, run, metric);
  add(sums.sum_sq, other.sum_sq, run, metric);
}

}  // namespace

Scores merge_scores(std::span<const Scores> runs) {
  if (runs.size() < 2) throw Error(ErrorCode::kUsage, "merge: one file of scores; wanted two or more");
  Scores out = runs.front();
  out.runs.clear();
  out.second_moment.clear();
  std::erase_if(out.metrics, [](const auto& entry) { return !utility_metric(entry.first).merges; });
  std::set<std::string> seen;
  const auto note_runs = [&](size_t run) {
    for (auto& digest : runs_of(runs[run])) {
      if (!seen.insert(digest).second) refuse(run, "contain a run that an earlier file contains; wanted each run once");
      out.runs.push_back(std::move(digest));
    }
  };
  note_runs(0);
  Sha256 tokens;
  tokens.add(out.tokens_digest);
  for (size_t run = 1; run < runs.size(); ++run) {
    const Scores& other = runs[run];
    check_alike(out, other, run);
    note_runs(run);
    for (auto& [name, metric] : out.metrics) {
      const auto found = other.metrics.find(name);
      if (found == other.metrics.end()) refuse(run, cat("have no '", name, "', which the first has"));
      merge_sums(metric.fc1, found->second.fc1, run, name);
      merge_sums(metric.fc2, found->second.fc2, run, name);
    }
    add(out.gate_concentration.sum, other.gate_concentration.sum, run, "gate_concentration");
    add(out.gate_concentration.sum_sq, other.gate_concentration.sum_sq, run, "gate_concentration");
    out.tokens_seen += other.tokens_seen;
    out.batches += other.batches;
    if (out.tokens_seen > uint64_t{families::kMaxCount})
      refuse(run, cat("more than ", families::kMaxCount, " tokens together with the files before"));
    tokens.add(other.tokens_digest);
  }
  out.tokens_digest = tokens.hex();
  return out;
}

}  // namespace coppice::plan
