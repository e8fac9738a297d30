#include "coppice/save/saved_state.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/nn/host.h"
#include "coppice/step/divided_state.h"

namespace coppice::save {
namespace {

using nn::Parameter;
using step::Interval;

// Elements of a parameter that one rank writes: all of it, or some of its experts. Flat tensors.
struct Unit {
  at::Tensor master, exp_avg, exp_avg_sq;
  int64_t first = 0, count = 0;  // of this rank's experts; without experts 0 and 1
};

// The part of this rank's experts that it writes; the ranks that have the same experts write the others.
Interval written_experts(int64_t experts, int64_t rank, int64_t ranks) {
  return {experts * rank / ranks, experts * (rank + 1) / ranks};
}

// Divides the writing of a state among its ranks.
class Division {
 public:
  explicit Division(const step::ShardLayout& layout) : layout_(layout), writer_(layout.sizes().size(), -1) {
    std::vector<int64_t> elements(static_cast<size_t>(layout.ranks()), 0);
    std::vector<size_t> order;
    for (size_t i = 0; i < writer_.size(); ++i) {
      if (!has_experts(i)) order.push_back(i);
    }
    std::ranges::stable_sort(order, std::greater{}, [&](size_t i) { return layout.sizes()[i].count; });
    for (const size_t i : order) {
      writer_[i] = std::ranges::min_element(elements) - elements.begin();
      elements[static_cast<size_t>(writer_[i])] += layout.sizes()[i].count;
    }
  }

  bool has_experts(size_t i) const { return !layout_.experts_of(i, 0).empty(); }

  // The experts of a rank, by their places there, that it writes.
  Interval experts(size_t i, int64_t rank) const {
    const int64_t groups = layout_.ranks() / layout_.expert_ranks();
    return written_experts(std::ssize(layout_.experts_of(i, rank)), rank / layout_.expert_ranks(), groups);
  }

  // The elements of the whole parameter that each rank writes.
  std::vector<std::vector<Interval>> wanted(size_t i) const {
    std::vector<std::vector<Interval>> out(static_cast<size_t>(layout_.ranks()));
    if (!has_experts(i)) out[static_cast<size_t>(writer_[i])].push_back({0, layout_.whole_count(i)});
    for (int64_t rank = 0; has_experts(i) && rank < layout_.ranks(); ++rank) {
      const Interval places = experts(i, rank);
      const std::span<const int64_t> all(layout_.experts_of(i, rank));
      out[static_cast<size_t>(rank)] =
          layout_.elements_of(i, all.subspan(static_cast<size_t>(places.begin), static_cast<size_t>(places.count())));
    }
    return out;
  }

  bool writes(size_t i, int64_t rank) const {
    return has_experts(i) ? experts(i, rank).count() > 0 : writer_[i] == rank;
  }

 private:
  const step::ShardLayout& layout_;
  std::vector<int64_t> writer_;  // rank, by parameter; -1 if it has experts
};

// Adds the tensors on disk of which the unit has elements.
void add_tensors(const Parameter& p, const step::ParameterState& state, const Unit& unit, SavedState& out) {
  const bool experts = p.is_experts();
  const int64_t size = p.value.numel() / (experts ? std::ssize(p.experts) : 1);  // of an expert
  const auto add = [&](const Parameter::Slice& slice, int64_t first_element, int64_t begin, size_t skip, int64_t expert,
                       std::vector<int64_t> steps) {
    const auto view = [&](const at::Tensor& flat) {
      return flat.as_strided(at::IntArrayRef(slice.sizes).slice(skip), at::IntArrayRef(slice.strides).slice(skip),
                             flat.storage_offset() + begin);
    };
    out.tensors.push_back({.slot = slice.slot,
                           .first_element = first_element,
                           .master = view(unit.master),
                           .exp_avg = view(unit.exp_avg),
                           .exp_avg_sq = view(unit.exp_avg_sq),
                           .first_step = std::max<int64_t>(expert, 0),
                           .steps = std::move(steps)});
  };
  for (const auto& slice : p.slices) {
    if (!experts) {
      add(slice, 0, slice.begin, 0, 0, state.steps);
    } else if (!slice.slot.rule->layout.stacked) {
      const int64_t place = std::ranges::lower_bound(p.experts, slice.slot.expert) - p.experts.begin();
      if (place < unit.first || place >= unit.first + unit.count) continue;
      add(slice, 0, slice.begin - unit.first * size, 0, 0, {state.steps[static_cast<size_t>(place)]});
    } else {
      const int64_t part = slice.count() / std::ssize(p.experts);
      for (int64_t k = unit.first; k < unit.first + unit.count; ++k) {
        const int64_t expert = p.experts[static_cast<size_t>(k)];
        add(slice, expert * part, slice.begin + (k - unit.first) * slice.strides.front(), 1, expert,
            {state.steps[static_cast<size_t>(k)]});
      }
    }
  }
}

Unit whole_unit(const Parameter& p, const step::ParameterState& state, Copies copies) {
  const auto take = [&](const at::Tensor& t) {
    const at::Tensor tensor = t.detach();
    return copies == Copies::kCopy ? nn::host_copy(tensor, at::kFloat) : tensor;
  };
  return {take(p.master), take(state.exp_avg), take(state.exp_avg_sq), 0, p.is_experts() ? std::ssize(p.experts) : 1};
}

void add_whole(const nn::Decoder& model, const step::Optimizer& optimizer, Copies copies, SavedState& out) {
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    const auto& p = model.parameters()[i];
    add_tensors(p, optimizer.states()[i], whole_unit(p, optimizer.states()[i], copies), out);
  }
}

void add_divided(const nn::Decoder& model, const step::Optimizer& optimizer, SavedState& out) {
  const step::ShardLayout& layout = optimizer.divided()->layout();
  const Division division(layout);
  dist::Group& all = model.division().world->all();
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    const Parameter& p = model.parameters()[i];
    const step::ParameterState& state = optimizer.states()[i];
    const auto shards = layout.shards(i);
    const auto wanted = division.wanted(i);
    const auto gather = [&](const at::Tensor& own) {
      return nn::on_host(step::gather_shards(all, shards, own, wanted)).to(at::kFloat);
    };
    Unit unit{gather(p.master), gather(state.exp_avg), gather(state.exp_avg_sq), 0, 1};
    if (!division.writes(i, layout.rank())) continue;
    if (p.is_experts()) {
      const Interval places = division.experts(i, layout.rank());
      unit.first = places.begin;
      unit.count = places.count();
    }
    add_tensors(p, state, unit, out);
  }
}

void sort_by_table(SavedState& state) {
  std::unordered_map<std::string, size_t> place;
  for (const auto& slot : families::expected_tensors(state.config)) place.emplace(slot.name, place.size());
  std::ranges::stable_sort(state.tensors, {}, [&](const SavedTensor& tensor) {
    return std::pair(place.at(tensor.slot.name), tensor.first_element);
  });
}

}  // namespace

int64_t num_steps(const families::TensorSlot& slot, const families::ModelConfig& config) {
  if (families::is_expert(slot.role())) return slot.rule->layout.stacked ? config.num_experts : 1;
  const bool is_router = slot.role() == families::Role::kRouter || slot.role() == families::Role::kRouterBias;
  return is_router ? config.num_experts : 1;
}

SavedState saved_state(const nn::Decoder& model, const step::Optimizer& optimizer, Copies copies) {
  COPPICE_CHECK(model.parameters().size() == optimizer.states().size());
  const at::NoGradGuard no_grad;
  SavedState out{.config = model.config(), .dtype = model.dtype(), .tensors = {}, .selection_bias = {}};
  if (optimizer.divided()) {
    add_divided(model, optimizer, out);
  } else {
    add_whole(model, optimizer, copies, out);
  }
  if (!optimizer.divided() || model.division().world->rank() == 0) {
    for (const auto& [layer, bias] : model.selection_bias())
      out.selection_bias[layer] = nn::host_copy(bias, at::kFloat);
  }
  sort_by_table(out);
  return out;
}

}  // namespace coppice::save
