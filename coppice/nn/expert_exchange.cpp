#include "coppice/nn/expert_exchange.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/sort.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <numeric>
#include <span>
#include <tuple>

#include "coppice/base/check.h"
#include "coppice/dist/world.h"
#include "coppice/nn/host.h"

// P pairs (token, slot) of this rank's tokens, those of its own experts (home) first, then by rank and expert; Q pairs
// that this rank's experts get, those from home first, then by rank.

namespace coppice::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

int64_t sum(std::span<const int64_t> values) { return std::accumulate(values.begin(), values.end(), int64_t{0}); }

/// Where the rows of one pass go.
struct Journey : torch::CustomClassHolder {
  dist::Group* group = nullptr;
  std::vector<int64_t> leave, arrive;  ///< rows to and from each rank; 0 for this one
  int64_t home = 0;
  at::Tensor pair_P, token_P;  ///< of each row
  at::Tensor row_TK;           ///< of each pair
  int64_t arrived() const { return home + sum(arrive); }

  /// The rows of `here` in order `index_P` go to their experts.
  ///
  /// Returns [Q, ...]; `work` has to be waited for.
  at::Tensor send(const at::Tensor& here, const at::Tensor& index_P, dist::Work& work) const {
    auto sizes = here.sizes().vec();
    sizes[0] = arrived();
    const auto there = at::empty(sizes, here.options());
    const auto leaving = here.index_select(0, index_P.narrow(0, home, index_P.numel() - home));
    work = group->all_to_all(there.narrow(0, home, arrived() - home), leaving, arrive, leave);
    auto staying = there.narrow(0, 0, home);
    at::index_select_out(staying, here, 0, index_P.narrow(0, 0, home));
    return there;
  }

  /// The way back: what the experts have for each row, [Q, ...].
  ///
  /// Returns [P, ...]; `work` has to be waited for.
  at::Tensor send_back(const at::Tensor& there, dist::Work& work) const {
    auto sizes = there.sizes().vec();
    sizes[0] = pair_P.numel();
    const auto here = at::empty(sizes, there.options());
    work = group->all_to_all(here.narrow(0, home, sizes[0] - home), there.narrow(0, home, arrived() - home), leave,
                             arrive);
    here.narrow(0, 0, home).copy_(there.narrow(0, 0, home));
    return here;
  }

  /// Sums of each token's rows, in slot order.
  at::Tensor sum_over_slots(const at::Tensor& row_PD) const {
    at::Tensor sum_TD;
    for (int64_t k = 0; k < row_TK.size(1); ++k) {
      const auto of_slot_TD = row_PD.index_select(0, row_TK.select(1, k));
      if (k == 0) {
        sum_TD = of_slot_TD.to(at::promote_types(row_PD.scalar_type(), at::kFloat));
      } else {
        sum_TD.add_(of_slot_TD);
      }
    }
    return sum_TD.to(row_PD.scalar_type());
  }

  at::Tensor to_slots(const at::Tensor& value_P) const {
    return value_P.index_select(0, row_TK.flatten()).view(row_TK.sizes());
  }
};

c10::intrusive_ptr<Journey> journey_of(AutogradContext* ctx) {
  return c10::static_intrusive_pointer_cast<Journey>(ctx->saved_data["journey"].toCapsule());
}

/// x_TD, gate_TK -> x_QD, gate_Q. Rows and gates are one function, so that their gradients travel in a fixed order.
struct GoToExperts : torch::autograd::Function<GoToExperts> {
  static variable_list forward(AutogradContext* ctx, const c10::intrusive_ptr<Journey>& journey, const at::Tensor& x_TD,
                               const at::Tensor& gate_TK) {
    ctx->saved_data["journey"] = at::IValue::make_capsule(journey);
    dist::Work rows, gates;
    const auto x_QD = journey->send(x_TD.contiguous(), journey->token_P, rows);
    const auto gate_Q = journey->send(gate_TK.reshape({-1}), journey->pair_P, gates);
    rows.wait();
    gates.wait();
    return {x_QD, gate_Q};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto journey = journey_of(ctx);
    dist::Work rows, gates;
    const auto grad_PD = journey->send_back(grads[0].contiguous(), rows);
    const auto grad_P = journey->send_back(grads[1].contiguous(), gates);
    rows.wait();
    gates.wait();
    return {at::Tensor(), journey->sum_over_slots(grad_PD), journey->to_slots(grad_P)};
  }
};

/// y_QD -> y_TD.
struct ComeHome : torch::autograd::Function<ComeHome> {
  static at::Tensor forward(AutogradContext* ctx, const c10::intrusive_ptr<Journey>& journey, const at::Tensor& y_QD) {
    ctx->saved_data["journey"] = at::IValue::make_capsule(journey);
    dist::Work rows;
    const auto y_PD = journey->send_back(y_QD.contiguous(), rows);
    rows.wait();
    return journey->sum_over_slots(y_PD);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto journey = journey_of(ctx);
    dist::Work rows;
    const auto grad_QD = journey->send(grads[0].contiguous(), journey->token_P, rows);
    rows.wait();
    return {at::Tensor(), grad_QD};
  }
};

/// The counts by the ranks that have the experts: an entry for each of its experts. The rank itself is left out.
std::vector<int64_t> by_rank(std::span<const int64_t> counts, std::span<const int64_t> sizes, int64_t self) {
  std::vector<int64_t> out;
  for (int64_t rank = 0; rank < std::ssize(sizes); ++rank) {
    const auto size = static_cast<size_t>(rank == self ? 0 : sizes[static_cast<size_t>(rank)]);
    out.push_back(sum(counts.first(size)));
    counts = counts.subspan(size);
  }
  COPPICE_CHECK(counts.empty());
  return out;
}

}  // namespace

ExpertExchange::ExpertExchange(dist::Group& group, const ExpertPlacement& placement, at::Device device)
    : group_(group) {
  COPPICE_CHECK(group.size() == placement.num_ranks);
  std::vector<int64_t> order = placement.experts_of(group.rank());
  for (int64_t rank = 0; rank < group.size(); ++rank) {
    const auto experts = placement.experts_of(rank);
    experts_of_.push_back(std::ssize(experts));
    if (rank != group.rank()) order.insert(order.end(), experts.begin(), experts.end());
  }
  std::vector<int64_t> position(order.size());
  for (size_t i = 0; i < order.size(); ++i) position[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  expert_at_E_ = from_host<int64_t>(order, {std::ssize(order)}, device);
  position_E_ = from_host<int64_t>(position, {std::ssize(position)}, device);
}

at::Tensor ExpertExchange::experts(const at::Tensor& x_TD, const at::Tensor& w_gate_up_OGD,
                                   const at::Tensor& w_down_ODF, const at::Tensor& index_TK, const at::Tensor& gate_TK,
                                   const at::Tensor& count_E, kernels::MoeKernel kernel,
                                   const kernels::ExpertForm& form, at::Tensor* pair_sq_TK) const {
  const int64_t self = group_.rank(), ranks = group_.size(), pairs = index_TK.numel();
  const int64_t own = experts_of_[static_cast<size_t>(self)];
  COPPICE_CHECK(w_down_ODF.size(0) == own && count_E.numel() == position_E_.numel());

  std::vector<int64_t> ask = experts_of_, answer(static_cast<size_t>(ranks), own);
  ask[static_cast<size_t>(self)] = answer[static_cast<size_t>(self)] = 0;
  const auto leaving_E = count_E.index_select(0, expert_at_E_);
  const auto arriving = at::empty({ranks * own}, count_E.options());  // by rank, this one first, and expert
  arriving.narrow(0, 0, own).copy_(leaving_E.narrow(0, 0, own));
  group_
      .all_to_all(arriving.narrow(0, own, (ranks - 1) * own), leaving_E.narrow(0, own, leaving_E.numel() - own), answer,
                  ask)
      .wait();
  const std::vector<at::Tensor> there{leaving_E, arriving};
  const auto here = on_host_together(there);
  const auto leave = host_values<int64_t>(here[0]), arrive = host_values<int64_t>(here[1]);

  const auto journey = c10::make_intrusive<Journey>();
  journey->group = &group_;
  journey->home = sum(leave.first(static_cast<size_t>(own)));
  journey->leave = by_rank(leave.subspan(static_cast<size_t>(own)), experts_of_, self);
  journey->arrive =
      by_rank(arrive.subspan(static_cast<size_t>(own)), std::vector<int64_t>(static_cast<size_t>(ranks), own), self);
  journey->pair_P = std::get<1>(at::sort(position_E_.index_select(0, index_TK.flatten()), /*stable=*/true, /*dim=*/0,
                                         /*descending=*/false));
  journey->token_P = journey->pair_P.floor_divide(index_TK.size(1));
  journey->row_TK = at::empty_like(journey->pair_P)
                        .scatter_(0, journey->pair_P, at::arange(pairs, journey->pair_P.options()))
                        .view(index_TK.sizes());
  const auto expert_Q =
      at::repeat_interleave(at::arange(own, count_E.options()).repeat({ranks}), arriving, 0, journey->arrived());

  const auto sent = GoToExperts::apply(journey, x_TD, gate_TK);
  at::Tensor pair_sq_Q1;
  const auto y_QD = kernels::moe_experts(sent[0], w_gate_up_OGD, w_down_ODF, expert_Q.unsqueeze(1),
                                         sent[1].unsqueeze(1), kernel, form, pair_sq_TK ? &pair_sq_Q1 : nullptr);
  const auto y_TD = ComeHome::apply(journey, y_QD);
  if (pair_sq_TK) {
    dist::Work work;
    const auto pair_sq_P = journey->send_back(pair_sq_Q1.contiguous().view({-1}), work);
    work.wait();
    *pair_sq_TK = journey->to_slots(pair_sq_P);
  }
  return y_TD;
}

ExpertExchanges make_exchanges(const Division& division, at::Device device) {
  ExpertExchanges out;
  if (!division.world) return out;
  for (const auto& [layer, placement] : division.placement) {
    COPPICE_CHECK(division.world->experts().rank() == division.expert_rank);
    out.try_emplace(layer, division.world->experts(), placement, device);
  }
  return out;
}

}  // namespace coppice::nn
