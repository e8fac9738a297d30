#include "coppice/step/divided_state.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/step/optimizer.h"

namespace coppice::step {

struct DividedState::Memory {
  dist::Group* group = nullptr;
  Interval kept;
  at::Tensor values;          // [count], the dtype of computation
  at::Tensor gradients;       // [count], f32
  at::Tensor kept_gradients;  // those of `kept`
  std::vector<bool> has;      // by part: it got a gradient in this batch
  size_t missing = 0;         // parts that wait for the gradient of the last pass
  dist::Work summing, gathering;

  at::Tensor of(const at::Tensor& flat, const Bucket::Part& part) const {
    return flat.narrow(0, part.begin, part.count);
  }
};

// Adds a parameter's gradient to its bucket when a backward pass has made it.
class DividedState::Hook : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(DividedState& state, size_t parameter) : state_(state), parameter_(parameter) {}

  void operator()(const at::Tensor& value) override {
    if (!state_.is_in_batch_) return;
    const at::NoGradGuard no_grad;
    const at::Tensor gradient = value.grad();
    value.mutable_grad().reset();
    state_.add_gradient(parameter_, gradient);
  }

 private:
  DividedState& state_;
  size_t parameter_;
};

DividedState::DividedState(std::vector<nn::Parameter>& parameters, const nn::Division& division)
    : world_(division.world), layout_(sizes_of(parameters, division), division) {
  const at::NoGradGuard no_grad;
  COPPICE_CHECK(!parameters.empty());
  const auto options = parameters.front().value.options().requires_grad(false);
  for (const Bucket& bucket : layout_.buckets()) {
    Memory& memory = memory_.emplace_back();
    memory.group = bucket.experts ? &world_->same_experts() : &world_->all();
    memory.kept = bucket.kept(memory.group->rank(), memory.group->size());
    memory.values = at::zeros({bucket.count}, options);
    memory.gradients = at::zeros({bucket.count}, options.dtype(at::kFloat));
    memory.kept_gradients = memory.gradients.narrow(0, memory.kept.begin, memory.kept.count());
    memory.has.assign(bucket.parts.size(), false);
    for (const Bucket::Part& part : bucket.parts) {
      nn::Parameter& p = parameters[part.parameter];
      const at::Tensor value = memory.of(memory.values, part).view(p.value.sizes()).detach();
      value.copy_(p.value);
      const Interval own = layout_.kept(part.parameter);
      if (memory.values.scalar_type() == at::kFloat) {
        p.master = kept_values(part.parameter);  // has these values already
      } else {
        const at::Tensor flat = p.master.view({-1});
        p.master = flat.numel() == own.count() ? flat : flat.narrow(0, own.begin, own.count()).clone();
      }
      p.value = value;
      p.value.set_requires_grad(true);
      torch::autograd::impl::set_post_acc_grad_hooks(p.value, std::make_unique<Hook>(*this, part.parameter));
    }
  }
  next_to_gather_ = next_to_read_ = memory_.size();
  // Where a collective holds a copy of its bucket, only the next ones run ahead.
  most_under_way_ = world_->all().copies() ? 2 : memory_.size();
}

DividedState::~DividedState() = default;

at::Tensor DividedState::kept_part(size_t parameter, const at::Tensor& flat, int64_t origin) const {
  const auto [bucket, part] = layout_.place(parameter);
  const Interval own = layout_.kept(parameter);
  const int64_t begin = layout_.buckets()[bucket].parts[part].begin + own.begin - origin;
  return flat.narrow(0, own.count() > 0 ? begin : 0, own.count());
}

at::Tensor DividedState::gradient(size_t parameter) const {
  const Memory& memory = memory_[layout_.place(parameter).bucket];
  return kept_part(parameter, memory.kept_gradients, memory.kept.begin);
}

at::Tensor DividedState::kept_values(size_t parameter) const {
  return kept_part(parameter, memory_[layout_.place(parameter).bucket].values, 0);
}

void DividedState::begin_batch() {
  is_in_batch_ = true;
  is_last_pass_ = false;
  next_to_sum_ = next_summed_ = 0;
  for (Memory& memory : memory_) memory.has.assign(memory.has.size(), false);
}

void DividedState::begin_last_pass() {
  is_last_pass_ = true;
  for (Memory& memory : memory_) memory.missing = memory.has.size();
}

void DividedState::add_gradient(size_t parameter, const at::Tensor& gradient) {
  const auto [index, which] = layout_.place(parameter);
  Memory& memory = memory_[index];
  const at::Tensor sum = memory.of(memory.gradients, layout_.buckets()[index].parts[which]).view(gradient.sizes());
  if (memory.has[which]) {
    sum.add_(gradient);
  } else {
    sum.copy_(gradient);
  }
  memory.has[which] = true;
  if (!is_last_pass_) return;
  COPPICE_CHECK(memory.missing > 0);
  if (--memory.missing == 0) start_full_buckets(false);
}

// From the last bucket to the first, on every rank in the same order. A backward pass never waits here: another rank may
// be waiting for what this one sends later in the pass.
void DividedState::start_full_buckets(bool all) {
  for (; next_to_sum_ < memory_.size(); ++next_to_sum_) {
    const size_t index = memory_.size() - 1 - next_to_sum_;
    Memory& memory = memory_[index];
    if (memory.missing > 0 && !all) return;
    if (next_to_sum_ - next_summed_ == most_under_way_) {
      if (!all && !memory_[memory_.size() - 1 - next_summed_].summing.is_over()) return;
      wait_for_sums(next_summed_ + 1);
    }
    const auto& parts = layout_.buckets()[index].parts;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (!memory.has[i]) memory.of(memory.gradients, parts[i]).zero_();
    }
    memory.summing = memory.group->reduce_scatter(memory.kept_gradients, memory.gradients);
  }
}

void DividedState::wait_for_sums(size_t buckets) {
  for (; next_summed_ < buckets; ++next_summed_) memory_[memory_.size() - 1 - next_summed_].summing.wait();
}

void DividedState::finish_batch() {
  start_full_buckets(true);
  wait_for_sums(memory_.size());
  is_in_batch_ = false;
}

void DividedState::gather_values() {
  next_to_gather_ = next_to_read_ = 0;
  start_gathering();
}

void DividedState::start_gathering() {
  const size_t end = std::min(memory_.size(), next_to_read_ + most_under_way_);
  for (; next_to_gather_ < end; ++next_to_gather_) {
    Memory& memory = memory_[next_to_gather_];
    const at::Tensor own = memory.values.narrow(0, memory.kept.begin, memory.kept.count());
    memory.gathering = memory.group->all_gather(memory.values, own);
  }
}

void DividedState::wait_for_values(int64_t layer) {
  const auto& buckets = layout_.buckets();
  while (next_to_read_ < memory_.size() && buckets[next_to_read_].layer <= layer) {
    memory_[next_to_read_++].gathering.wait();
    start_gathering();
  }
}

uint64_t DividedState::bytes_to_gather() const {
  uint64_t bytes = 0;
  for (size_t i = next_to_gather_; i < memory_.size(); ++i) {
    bytes += dist::share_of_others(memory_[i].values.nbytes(), memory_[i].group->size());
  }
  return bytes;
}

nn::KeepMasters keep_masters(const nn::Division& division) {
  if (!division.world || division.world->size() == 1) return {};
  return [division](const std::vector<nn::Parameter>& parameters) {
    const ShardLayout layout(sizes_of(parameters, division), division);
    std::vector<nn::KeptElements> out;
    for (size_t i = 0; i < parameters.size(); ++i) out.push_back({layout.kept(i).begin, layout.kept(i).count()});
    return out;
  };
}

at::Tensor master_on_first_rank(const Optimizer& optimizer, const std::vector<nn::Parameter>& parameters, size_t i) {
  const DividedState* const divided = optimizer.divided();
  const at::Tensor own = parameters[i].master.detach();
  if (!divided) return own;
  const ShardLayout& layout = divided->layout();
  std::vector<std::vector<Interval>> wanted(static_cast<size_t>(layout.ranks()));
  wanted.front().push_back({0, layout.whole_count(i)});
  return gather_shards(divided->world().all(), layout.shards(i), own, wanted);
}

}  // namespace coppice::step
