#include "coppice/convert/converted_tensors.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/convert/matrices_detail.h"
#include "coppice/matrix/stored_matrix.h"
#include "coppice/methods/expert_init.h"
#include "coppice/models/expert_layout.h"

namespace coppice::convert {
namespace {

using detail::average;
using detail::check_float;
using detail::constant;
using detail::slice_place;
using detail::whole;
using families::Model;
using families::Role;
using families::TensorSlot;
using io::Checkpoint;
using matrix::MatrixRows;
using matrix::StoredExpert;
using methods::Child;
using methods::RouterRows;
using models::ExpertMatrix;
using output::OutputPiece;
using output::OutputTensor;

double expert_factor(const ConversionPlan& plan, Role role) {
  if (role == Role::kExpertGate || role == Role::kExpertGateUp) return plan.scale.gate;
  return role == Role::kExpertUp ? plan.scale.up : plan.scale.down;
}

/// sqrt(dim) rounded to the dtype of the embeddings, as in the dense model.
float embedding_factor(int64_t dim, io::Dtype dtype) {
  const auto factor = static_cast<float>(std::sqrt(static_cast<double>(dim)));
  std::array<std::byte, sizeof(float)> bytes;
  const auto stored = std::span(bytes).first(io::dtype_bytes(dtype));
  io::from_f32(dtype, {&factor, 1}, stored);
  float rounded = 0;
  io::to_f32(dtype, stored, {&rounded, 1});
  return rounded;
}

/// Computes the bytes of pieces when they are needed. It is the PieceMaker of the experts' pieces, because a closure
/// for each would take too much memory.
class Converter : public output::PieceMaker, public std::enable_shared_from_this<Converter> {
 public:
  Converter(std::span<const Model> parents, const ConversionPlan& plan, const Mapping& mapping, const RouterRows* rows)
      : parents_(parents),
        plan_(plan),
        mapping_(mapping),
        rows_(rows),
        method_(methods::expert_init(plan.expert_init.name)),
        params_(method_.name, method_.params, plan.expert_init.given),
        router_params_(plan.router.name, methods::new_router(plan.router.name).params, plan.router.given) {}

  OutputTensor tensor(const MappedTensor& mapped) const {
    const io::Dtype dtype = dtype_of(mapped);
    OutputTensor out{output::tensor_info(mapped.slot.name, dtype, mapped.slot.shape), {}};
    switch (mapped.origin) {
      case Origin::kCopy: carry(mapped, out); break;
      case Origin::kPlusOne: out.pieces.push_back(changed(mapped, dtype, plus_one)); break;
      case Origin::kEmbeddings: {
        const float factor = embedding_factor(mapping_.config.model_dim, dtype);
        out.pieces.push_back(
            changed(mapped, dtype, [factor](MatrixRows m) { return matrix::scaled(std::move(m), factor); }));
        break;
      }
      case Origin::kZeros: out.pieces.push_back(filled(mapped, dtype, 0)); break;
      case Origin::kOnes: out.pieces.push_back(filled(mapped, dtype, 1)); break;
      case Origin::kRouter: out.pieces.push_back(router(mapped, dtype)); break;
      case Origin::kShared: add_shared(mapped, out); break;
      case Origin::kExperts: add_experts(mapped, out); break;
      case Origin::kExpertMean: COPPICE_CHECK(false, mapped.slot.name);
    }
    return out;
  }

 private:
  static MatrixRows plus_one(MatrixRows matrix) {
    matrix.read = [read = std::move(matrix.read)](int64_t first, std::span<float> out) {
      read(first, out);
      for (float& x : out) x += 1.0f;
    };
    return matrix;
  }

  Checkpoint::Entry at(std::string_view name, size_t parent = 0) const { return parents_[parent].checkpoint.at(name); }
  bool averages() const { return parents_.size() > 1 && plan_.trunk == "average"; }

  /// The dtype of its source; new tensors have the dtype of the layers' first matrix.
  io::Dtype dtype_of(const MappedTensor& mapped) const {
    if (mapped.slot.role() == Role::kSelectionBias) return io::Dtype::kF32;
    if (!mapped.source.empty()) return at(mapped.source).info->dtype;
    return at(families::tensor_name(parents_[0].config, Role::kDenseGate, 0)).info->dtype;
  }

  void carry(const MappedTensor& mapped, OutputTensor& out) const {
    if (averages()) {
      const io::Dtype dtype = out.info.dtype;
      out.pieces.push_back(changed(mapped, dtype, [](MatrixRows m) { return m; }));
      return;
    }
    out = output::copied_tensor(std::move(out.info), at(mapped.source));
  }

  /// The tensor after `change`; averaged over the parents if the plan averages the trunk.
  OutputPiece changed(const MappedTensor& mapped, io::Dtype dtype,
                      const std::function<MatrixRows(MatrixRows)>& change) const {
    const ExpertMatrix place = whole(mapped.slot.role(), mapped.slot.shape);
    std::vector<StoredExpert> stored;
    for (size_t p = 0; p < (averages() ? parents_.size() : 1); ++p) {
      const Checkpoint::Entry entry = at(mapped.source, p);
      check_float(entry);
      stored.push_back({entry, {0, entry.info->bytes}});
    }
    return output::matrices_piece({place}, dtype, true, [stored, place, change] {
      std::vector<MatrixRows> matrices;
      for (const StoredExpert& of_parent : stored) matrices.push_back(matrix::stored_matrix(of_parent, place));
      return std::vector{change(average(std::move(matrices)))};
    });
  }

  static OutputPiece filled(const MappedTensor& mapped, io::Dtype dtype, float value) {
    const ExpertMatrix place = whole(mapped.slot.role(), mapped.slot.shape);
    return output::matrices_piece({place}, dtype, true, [place, value] { return std::vector{constant(place, value)}; });
  }

  OutputPiece router(const MappedTensor& mapped, io::Dtype dtype) const {
    const ExpertMatrix place = whole(mapped.slot.role(), mapped.slot.shape);
    return output::matrices_piece({place}, dtype, true, [self = shared_from_this(), place, layer = mapped.slot.layer] {
      const ConversionPlan& plan = self->plan_;
      if (self->rows_ != nullptr) {
        const auto values = std::make_shared<std::vector<float>>(
            self->rows_->of(layer, plan.experts, plan.experts_a_row(), place.cols));
        return std::vector{MatrixRows{place.role, place.rows, place.cols,
                                      [values, cols = place.cols](int64_t first, std::span<float> out) {
                                        std::copy_n(values->begin() + first * cols, out.size(), out.begin());
                                      }}};
      }
      return std::vector{new_rows(plan, place, layer, self->router_params_)};
    });
  }

  static MatrixRows new_rows(const ConversionPlan& plan, const ExpertMatrix& place, int64_t layer,
                             const methods::Params& params) {
    const auto make = methods::new_router(plan.router.name).row;
    return {place.role, place.rows, place.cols,
            [make, of_row = plan.experts_a_row(), layer, params, seed = plan.seed, cols = place.cols](
                int64_t first, std::span<float> out) {
              for (size_t at = 0; at < out.size(); at += static_cast<size_t>(cols), ++first)
                make(seed, layer, first / of_row, params, out.subspan(at, static_cast<size_t>(cols)));
            }};
  }

  /// Adds the first units of gate or up, bit-equal.
  void add_shared(const MappedTensor& mapped, OutputTensor& out) const {
    const Checkpoint::Entry entry = at(mapped.source);
    out.pieces.push_back({.bytes = out.info.bytes, .file = entry.file, .offset = entry.info->offset});
  }

  void add_experts(const MappedTensor& mapped, OutputTensor& out) const {
    const TensorSlot& slot = mapped.slot;
    const methods::LayerPlan* layer = plan_.find_layer(slot.layer);
    COPPICE_CHECK(layer != nullptr, slot.name);
    const auto places = models::expert_matrices(slot, plan_.experts);
    const int64_t first = slot.expert < 0 ? 0 : slot.expert, end = slot.expert < 0 ? plan_.experts : first + 1;
    for (int64_t expert = first; expert < end; ++expert) {
      for (const ExpertMatrix& place : places) {
        COPPICE_CHECK(place.is_contiguous(), slot.name);
        out.pieces.push_back(expert_piece(slot.layer, expert, place.role, out.info.dtype));
      }
    }
  }

  StoredExpert dense_matrix(int64_t layer, Role role, uint32_t slice) const {
    const size_t parent = slice / static_cast<size_t>(plan_.granularity);
    const Model& model = parents_[parent];
    const auto entry = model.checkpoint.at(families::tensor_name(model.config, dense_role(role), layer));
    return {entry, {0, entry.info->bytes}};
  }

  ExpertMatrix place_of(const StoredExpert& stored, Role role, uint32_t slice) const {
    return slice_place(role, stored.entry.info->shape, slice % plan_.granularity, plan_.granularity);
  }

  bool changes(const Child& child) const { return !method_.same_bytes && (child.copy > 0 || plan_.init_all); }

  OutputPiece expert_piece(int64_t layer, int64_t expert, Role role, io::Dtype dtype) const {
    const Child& child = plan_.find_layer(layer)->children[static_cast<size_t>(expert)];
    const StoredExpert stored = dense_matrix(layer, role, child.parent);
    check_float(stored.entry);
    if (stored.entry.info->dtype != dtype) {
      throw Error(ErrorCode::kUnsupported,
                  cat("'", stored.entry.info->name, "': is ", io::dtype_name(stored.entry.info->dtype),
                      ", but a matrix that will be stored in the same tensor is ", io::dtype_name(dtype),
                      " (use a checkpoint with one dtype)"));
    }
    const ExpertMatrix from = place_of(stored, role, child.parent);
    if (!changes(child) && expert_factor(plan_, role) == 1 && from.is_contiguous()) {
      const auto width = io::dtype_bytes(dtype);
      return {.bytes = static_cast<uint64_t>(from.rows * from.cols) * width,
              .file = stored.entry.file,
              .offset = stored.entry.info->offset + static_cast<uint64_t>(from.begin) * width};
    }
    const ExpertMatrix place = alone(from);
    return {.bytes = matrix::matrices_bytes({&place, 1}, dtype),
            .maker = shared_from_this(),
            .number = number_of({layer, expert, role}),
            .cuttable = matrix::matrices_cuttable({&place, 1}, !changes(child) || !method_.holds_matrix),
            .identity = changes(child) ? 0 : slice_identity(layer, role, child.parent)};
  }

  /// The place of a matrix that is cut out of another one and stored alone.
  static ExpertMatrix alone(ExpertMatrix place) {
    place.begin = 0;
    place.row_step = place.cols;
    return place;
  }

  /// A matrix of an expert of the converted model, and the number of its piece.
  struct ExpertNumber {
    int64_t layer, expert;
    Role role;
  };
  static uint64_t number_of(const ExpertNumber& of) {
    return static_cast<uint64_t>(of.layer) << 40 | static_cast<uint64_t>(of.expert) << 8 |
           static_cast<uint64_t>(of.role);
  }
  static ExpertNumber of_number(uint64_t number) {
    return {static_cast<int64_t>(number >> 40), static_cast<int64_t>(number >> 8 & 0xffffffff),
            static_cast<Role>(number & 0xff)};
  }

  Fill make(uint64_t number) const override {
    const auto [layer, expert, role] = of_number(number);
    const Child& child = plan_.find_layer(layer)->children[static_cast<size_t>(expert)];
    const StoredExpert stored = dense_matrix(layer, role, child.parent);
    const auto prepare = [this, layer, child, role] {
      const matrix::RowsSource slices = [&](uint32_t slice) {
        const StoredExpert matrix = dense_matrix(layer, role, slice);
        return matrix::stored_matrix(matrix, place_of(matrix, role, slice));
      };
      MatrixRows matrix = slices(child.parent);
      if (changes(child)) matrix.read = method_.child(matrix, key_of(layer, child), slices, params_);
      return std::vector{matrix::scaled(std::move(matrix), expert_factor(plan_, role))};
    };
    return matrix::matrices_fill({alone(place_of(stored, role, child.parent))}, stored.entry.info->dtype, prepare);
  }

  /// A number for each slice of each matrix; experts with the same slice have the same bytes.
  uint64_t slice_identity(int64_t layer, Role role, uint32_t slice) const {
    const auto matrix = static_cast<uint64_t>(layer) * 256 + static_cast<uint64_t>(role);
    return 1 + matrix * static_cast<uint64_t>(plan_.slices()) + slice;
  }

  methods::ChildKey key_of(int64_t layer, const Child& child) const {
    return {
        .seed = plan_.seed, .layer = layer, .parent = child.parent, .copy = child.copy, .num_experts = plan_.slices()};
  }

  std::span<const Model> parents_;
  const ConversionPlan& plan_;
  const Mapping& mapping_;
  const RouterRows* rows_;
  const methods::ExpertInit& method_;
  const methods::Params params_, router_params_;
};

}  // namespace

std::string source_text(const MappedTensor& tensor, const ConversionPlan& plan) {
  const std::string of_source = cat("'", tensor.source, "'");
  const bool averaged = plan.parents > 1 && plan.trunk == "average";
  const std::string of_models = averaged ? cat(", averaged over ", plan.parents, " models") : std::string();
  switch (tensor.origin) {
    case Origin::kCopy: return cat(averaged ? "" : "a copy of ", of_source, of_models);
    case Origin::kPlusOne: return cat("1 + ", of_source, of_models);
    case Origin::kEmbeddings: return cat(of_source, " times sqrt(hidden_size)", of_models);
    case Origin::kZeros: return "zeros";
    case Origin::kOnes: return "ones";
    case Origin::kRouter: return cat("router rows, ", plan.router.to_text());
    case Origin::kShared: return cat("the first ", plan.shared_width, " units of ", of_source);
    case Origin::kExpertMean: return cat("the average of the experts of ", of_source);
    case Origin::kExperts: break;
  }
  const Role role = tensor.slot.role();
  const std::string factor = cat("times ", number_text(expert_factor(plan, role)));
  if (tensor.slot.expert < 0) return cat("slices of ", of_source, " of ", plan.experts, " experts, ", factor);
  const Child& child = plan.find_layer(tensor.slot.layer)->children[static_cast<size_t>(tensor.slot.expert)];
  const int64_t slice = child.parent % plan.granularity, parent = child.parent / plan.granularity;
  const bool changes = !methods::expert_init(plan.expert_init.name).same_bytes && (child.copy > 0 || plan.init_all);
  return cat(plan.granularity == 1 ? "all" : cat("slice ", slice + 1, " of ", plan.granularity), " of ", of_source,
             plan.parents > 1 ? cat(" of model ", parent + 1) : std::string(),
             changes ? cat(", changed by ", plan.expert_init.to_text()) : std::string(), ", ", factor);
}

std::vector<OutputTensor> converted_tensors(std::span<const Model> parents, const ConversionPlan& plan,
                                            const Mapping& mapping, const RouterRows* rows) {
  const auto converter = std::make_shared<Converter>(parents, plan, mapping, rows);
  std::vector<OutputTensor> tensors;
  tensors.reserve(mapping.tensors.size());
  for (const MappedTensor& mapped : mapping.tensors) tensors.push_back(converter->tensor(mapped));
  return tensors;
}

}  // namespace coppice::convert
