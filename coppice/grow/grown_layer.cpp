#include <algorithm>
#include <span>

#include "coppice/grow/grown_layer_detail.h"
#include "coppice/grow/grown_weights.h"
#include "coppice/methods/expert_init.h"

namespace coppice::grow::detail {
namespace {

using families::Role;
using families::TensorSlot;
using output::OutputPiece;

std::vector<std::byte> bytes_of(const OutputPiece& piece) {
  std::vector<std::byte> bytes(piece.bytes);
  piece.fill(0, bytes);
  return bytes;
}

std::vector<std::byte> bytes_of(const output::OutputTensor& tensor) {
  std::vector<std::byte> bytes(tensor.info.bytes);
  uint64_t at = 0;
  for (const OutputPiece& piece : tensor.pieces) {
    piece.fill(0, std::span(bytes).subspan(at, piece.bytes));
    at += piece.bytes;
  }
  return bytes;
}

bool have_same_bytes(const OutputPiece& a, const OutputPiece& b) {
  if (a.file != nullptr && a.file == b.file && a.offset == b.offset) return a.bytes == b.bytes;
  return bytes_of(a) == bytes_of(b);
}

std::vector<float> widened(io::Dtype dtype, std::span<const std::byte> bytes, int64_t count) {
  if (!io::is_float(dtype)) return {};
  std::vector<float> values(static_cast<size_t>(count));
  io::to_f32(dtype, bytes, values);
  return values;
}

/// The rows multiplied by `factor` and rounded to their dtype.
std::vector<std::byte> times(io::Dtype dtype, std::span<const std::byte> bytes, int64_t count, double factor) {
  if (factor == 1 || !io::is_float(dtype)) return {bytes.begin(), bytes.end()};
  auto values = widened(dtype, bytes, count);
  for (float& x : values) x = static_cast<float>(factor * x);
  std::vector<std::byte> out(bytes.size());
  io::from_f32(dtype, values, out);
  return out;
}

}  // namespace

GrownLayers::GrownLayers(const families::Model& model, const plan::GrowthPlan& plan)
    : model_(model),
      plan_(with_all_layers(model, plan)),
      state_(models::OptimizerState::open(model)),
      router_slots_(grown_router_slots(model, plan_)) {
  routers_ = grown_weights(model_, plan_, router_slots_, state_ ? &*state_ : nullptr);
  for (size_t i = 0; i < router_slots_.size(); ++i) router_at_[{router_slots_[i].role(), router_slots_[i].layer}] = i;
}

std::optional<GrownRows> GrownLayers::rows(Role role, int64_t layer) const {
  const auto found = router_at_.find({role, layer});
  if (found == router_at_.end()) return std::nullopt;
  const TensorSlot& slot = router_slots_[found->second];
  const io::Checkpoint::Entry stored = model_.checkpoint.at(slot.name);
  const io::Dtype dtype = stored.info->dtype;
  const int64_t experts = plan_.experts_before, rows_before = model_.config.rows_of(role);
  const size_t row_bytes = stored.info->bytes / static_cast<size_t>(rows_before);
  GrownRows out;
  out.dtype = dtype;
  out.cols = stored.info->elements() / rows_before;
  const double factor = role == Role::kSelectionBias ? plan_.selection_bias_factor : 1.0;
  const auto raw = stored.data().first(static_cast<size_t>(experts) * row_bytes);
  const auto wanted = times(dtype, raw, experts * out.cols, factor);
  const auto after = bytes_of(routers_[found->second]);
  out.before = widened(dtype, raw, experts * out.cols);
  stored.file->release(*stored.info);
  const auto& children = plan_.layer(layer).children;
  const auto own = std::span(after).first(children.size() * row_bytes);
  out.after = widened(dtype, own, static_cast<int64_t>(children.size()) * out.cols);
  for (size_t i = 0; i < children.size(); ++i) {
    const auto parent = std::span(wanted).subspan(children[i].parent * row_bytes, row_bytes);
    out.as_parent.push_back(std::ranges::equal(own.subspan(i * row_bytes, row_bytes), parent));
  }
  return out;
}

bool GrownLayers::experts_are_copies(int64_t layer) const {
  if (methods::expert_init(plan_.expert_init_of(layer).name).same_bytes) return true;
  if (methods::expert_init(plan_.expert_init_of(layer).name).holds_matrix)
    return false;  // joins the parts again, with rounding
  std::vector<TensorSlot> slots = grown_slots(model_, plan_);
  std::erase_if(slots, [&](const TensorSlot& slot) {
    return slot.layer != layer || !families::is_expert(slot.role()) || slot.expert >= plan_.experts_after;
  });
  const auto tensors = grown_weights(model_, plan_, slots, state_ ? &*state_ : nullptr);
  std::map<std::pair<const families::TensorRule*, size_t>, const OutputPiece*> piece_of;  // by rule and child
  for (size_t t = 0; t < slots.size(); ++t) {
    for (size_t i = 0; i < tensors[t].pieces.size(); ++i) {
      const size_t child = slots[t].expert >= 0 ? static_cast<size_t>(slots[t].expert) : i;
      piece_of[{slots[t].rule, child}] = &tensors[t].pieces[i];
    }
  }
  const auto& children = plan_.layer(layer).children;
  std::vector<size_t> original(static_cast<size_t>(plan_.experts_before));
  for (size_t i = 0; i < children.size(); ++i) {
    if (children[i].copy == 0) original[children[i].parent] = i;
  }
  return std::ranges::all_of(piece_of, [&](const auto& entry) {
    const auto& [key, piece] = entry;
    const methods::Child& child = children[key.second];
    return child.copy == 0 || have_same_bytes(*piece, *piece_of.at({key.first, original[child.parent]}));
  });
}

}  // namespace coppice::grow::detail
