// A growth plan from Python, and the values of children computed on tensors: the functions of grow/grow.h, which
// `expand` calls too.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/find_row.h"
#include "coppice/base/text.h"
#include "coppice/base/toml.h"
#include "coppice/grow/expand_options.h"
#include "coppice/grow/grow.h"
#include "coppice/grow/grown_weights.h"
#include "coppice/methods/expert_init.h"
#include "coppice/methods/optimizer_init.h"
#include "coppice/plan/plan.h"
#include "coppice/plan/text.h"
#include "coppice/plan/utility.h"
#include "python/bindings/bindings.h"
#include "python/bindings/model_description.h"
#include "python/bindings/tensors.h"

namespace coppice::python {
namespace {

namespace nb = nanobind;

using families::Role;
using methods::Child;
using methods::Moment;

constexpr std::array kRoles = {Role::kExpertGate,     Role::kExpertUp,     Role::kExpertDown,
                               Role::kExpertGateBias, Role::kExpertUpBias, Role::kExpertDownBias,
                               Role::kRouter,         Role::kRouterBias,   Role::kSelectionBias};

struct NamedRole {
  std::string_view name;
  Role role;
};

Role role_of(std::string_view name) {
  std::array<NamedRole, kRoles.size()> rows{};
  for (size_t i = 0; i < rows.size(); ++i) rows.at(i) = {families::role_name(kRoles.at(i)), kRoles.at(i)};
  return find_row(std::span<const NamedRole>(rows), "role", name).role;
}

Moment moment_of(std::string_view name) {
  struct Named {
    std::string_view name;
    Moment moment;
  };
  const std::array rows = {Named{methods::moment_name(Moment::kFirst), Moment::kFirst},
                           Named{methods::moment_name(Moment::kSecond), Moment::kSecond}};
  return find_row(std::span<const Named>(rows), "moment", name).moment;
}

using Tensors = std::map<uint32_t, Tensor>;  // by original expert

// Matrices of original experts, read when they are asked for.
class Sources {
 public:
  Sources(const Tensors& tensors, std::string_view what) {
    for (const auto& [expert, tensor] : tensors) matrices_.emplace(expert, StridedMatrix(tensor, cat(what, expert)));
  }
  matrix::MatrixSource source() {
    return [this](uint32_t expert) {
      const auto found = matrices_.find(expert);
      if (found == matrices_.end()) {
        throw Error(ErrorCode::kInternal, cat("expert ", expert, " is needed and was not given"));
      }
      return found->second.read(buffers_[expert]);
    };
  }
  const StridedMatrix& any() const { return matrices_.begin()->second; }

 private:
  std::map<uint32_t, StridedMatrix> matrices_;
  std::map<uint32_t, std::vector<std::byte>> buffers_;
};

// Calls `fill` with memory of the tensor's size, in order; then the tensor has these bytes.
template <class Fill>
void fill_matrix(const StridedMatrix& out, const Fill& fill) {
  if (const auto memory = out.memory(); !memory.empty()) return fill(memory);
  std::vector<std::byte> values(out.size_bytes());
  fill(std::span<std::byte>(values));
  out.write(values);
}

std::span<float> as_floats(std::span<std::byte> bytes) {
  return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
}

void check_shape(const StridedMatrix& found, int64_t rows, int64_t cols, io::Dtype dtype, std::string_view what) {
  if (found.rows() == rows && found.cols() == cols && found.dtype() == dtype) return;
  throw Error(ErrorCode::kShape, cat(what, ": [", found.rows(), ", ", found.cols(), "] ", io::dtype_name(found.dtype()),
                                     "; wanted [", rows, ", ", cols, "] ", io::dtype_name(dtype)));
}

// A plan with the model that it is for.
class PlanOfModel {
 public:
  PlanOfModel(std::string_view plan, std::string_view model, bool allow_regroup)
      : plan_(plan::GrowthPlan::from_json(Json::parse(plan, "plan"), "plan")) {
    ModelDescription described = described_model(model);
    config_ = std::move(described.config);
    plan::set_factors(config_, plan_);
    plan::check_plan(config_, plan_, allow_regroup);
    plan_ = grow::with_all_layers(described.layers_with_experts, config_.num_layers, std::move(plan_));
  }

  std::string grown_config() const {
    if (config_.json.is_null()) throw Error(ErrorCode::kInternal, "a model of modules has no configuration");
    return plan::grown_config(config_, plan_).dump();
  }
  int64_t experts_before() const { return plan_.experts_before; }
  int64_t experts_after() const { return plan_.experts_after; }
  int64_t split() const { return plan_.split; }
  int64_t top_k_factor() const { return plan_.top_k_factor; }
  bool has_router_bias() const { return config_.routing.has_router_bias; }
  std::vector<int64_t> layers() const {
    std::vector<int64_t> out;
    for (const auto& layer : plan_.layers) out.push_back(layer.layer);
    return out;
  }
  std::vector<std::pair<uint32_t, uint32_t>> children(int64_t layer) const {
    std::vector<std::pair<uint32_t, uint32_t>> out;
    for (const Child& child : layer_plan(layer).children) out.emplace_back(child.parent, child.copy);
    return out;
  }
  std::vector<uint32_t> sources(int64_t layer, size_t child) const {
    return grow::sources_of(plan_, layer, this->child(layer, child));
  }
  bool copies_expert(int64_t layer, size_t child, std::string_view role) const {
    return grow::is_plain_copy(plan_, layer, this->child(layer, child), role_of(role));
  }
  bool copies_moment(int64_t layer, size_t child) const {
    if (plan_.split > 1) return false;
    const auto& strategy = methods::optimizer_init(plan_.optimizer_state.name);
    if (this->child(layer, child).copy == 0) return !strategy.touches_original;
    const auto& method = methods::expert_init(plan_.expert_init_of(layer).name);
    return strategy.name == "copy" && (method.same_bytes || method.apply_moment == nullptr);
  }
  bool keeps_step() const { return methods::optimizer_init(plan_.optimizer_state.name).keeps_step; }
  int64_t step(int64_t layer, size_t child, int64_t parent_step) const {
    return grow::grow_step(plan_, this->child(layer, child), parent_step);
  }

  void grow_expert(int64_t layer, size_t index, std::string_view role, const Tensors& originals,
                   const Tensor& out) const {
    const Child& child = this->child(layer, index);
    const StridedMatrix to(out, "the child's matrix");
    Sources sources(originals, "the matrix of expert ");
    const nb::gil_scoped_release unlocked;
    const auto rounded_to = to.dtype();
    check_child(sources.any(), to, role_of(role), rounded_to);
    fill_matrix(to, [&](std::span<std::byte> bytes) {
      grow::grow_expert(plan_, layer, child, role_of(role), sources.source(), rounded_to, bytes);
    });
  }

  void grow_router(int64_t layer, std::string_view role, const Tensor& before, const Tensor& out) const {
    grow_rows(layer, "the router", before, out, std::nullopt, [&](const matrix::MatrixBytes& rows, auto bytes) {
      grow::grow_router(plan_, layer, role_of(role), rows, bytes, config_.routing.has_router_bias);
    });
  }

  void grow_expert_moment(int64_t layer, size_t index, std::string_view role, std::string_view kind,
                          const Tensors& moments, const Tensors& weights, const Tensor& out) const {
    const Child& child = this->child(layer, index);
    const StridedMatrix to(out, "the child's moment");
    Sources moment_sources(moments, "the moment of expert "), weight_sources(weights, "the matrix of expert ");
    const nb::gil_scoped_release unlocked;
    check_child(moment_sources.any(), to, role_of(role), io::Dtype::kF32);
    fill_matrix(to, [&](std::span<std::byte> bytes) {
      grow::grow_expert_moment(plan_, layer, child, role_of(role), moment_of(kind), moment_sources.source(),
                               weight_sources.source(), as_floats(bytes));
    });
  }

  void grow_router_moment(int64_t layer, std::string_view kind, const Tensor& before, const Tensor& out) const {
    constexpr std::string_view kWhat = "the router's moment";
    grow_rows(layer, kWhat, before, out, io::Dtype::kF32, [&](const matrix::MatrixBytes& rows, auto bytes) {
      const auto values = matrix::widened(rows, kWhat);
      grow::grow_router_moment(plan_, layer, moment_of(kind), values, rows.cols, as_floats(bytes));
    });
  }

 private:
  const methods::LayerPlan& layer_plan(int64_t layer) const {
    for (const auto& found : plan_.layers) {
      if (found.layer == layer) return found;
    }
    throw Error(ErrorCode::kUsage, cat("the plan has no layer ", layer));
  }
  const Child& child(int64_t layer, size_t index) const {
    const auto& children = layer_plan(layer).children;
    if (index < children.size()) return children[index];
    throw Error(ErrorCode::kUsage, cat("layer ", layer, " of the plan has no expert ", index));
  }
  void check_child(const StridedMatrix& from, const StridedMatrix& to, Role role, io::Dtype dtype) const {
    const bool narrower_rows = role != Role::kExpertDown && role != Role::kExpertDownBias;
    const int64_t rows = narrower_rows ? from.rows() / plan_.split : from.rows();
    const int64_t cols = role == Role::kExpertDown ? from.cols() / plan_.split : from.cols();
    check_shape(to, rows, cols, dtype, "the child");
  }
  // Calls `grow` with a tensor that has a row for each expert, and memory of the one after growth; without the GIL.
  template <class Grow>
  void grow_rows(int64_t layer, std::string_view what, const Tensor& before, const Tensor& out,
                 std::optional<io::Dtype> dtype_after, const Grow& grow) const {
    const std::string name_before = cat(what, " before"), name_after = cat(what, " after");
    const StridedMatrix from(before, name_before), to(out, name_after);
    (void)layer_plan(layer);
    const nb::gil_scoped_release unlocked;
    check_shape(from, plan_.experts_before, from.cols(), from.dtype(), name_before);
    check_shape(to, plan_.experts_after, from.cols(), dtype_after.value_or(to.dtype()), name_after);
    std::vector<std::byte> buffer;
    const matrix::MatrixBytes rows = from.read(buffer);
    fill_matrix(to, [&](std::span<std::byte> bytes) { grow(rows, bytes); });
  }

  families::ModelConfig config_;
  plan::GrowthPlan plan_;
};

// The plan that the options of `expand` make for a model; `scores` as in scores.json.
std::string make_plan(std::string_view model, std::string_view options, const std::optional<std::string>& scores) {
  const nb::gil_scoped_release unlocked;
  const families::ModelConfig config = described_model(model).config;
  grow::ExpandOptions asked;
  read_object(asked, Json::parse(options, "options"), "coppice.plan");
  plan::GrowthSettings& growth = asked;
  growth = growth.with_recipe(config.routing, true);
  std::optional<plan::Scores> read;
  if (scores) read = plan::Scores::from_json(Json::parse(*scores, "scores"), "scores");
  plan::GrowthPlan plan = grow::made_plan(asked, config, read ? &*read : nullptr);
  // What has no effect is refused; the optimizer of the run is not known here.
  grow::check_effects(asked, config, plan, true);
  if (scores && plan.select == "uniform") refuse_option("scores", "the rule 'uniform' does not use scores", "");
  return plan.to_json().dump();
}

std::string plan_to_toml(std::string_view text) {
  return plan::plan_toml(plan::GrowthPlan::from_json(Json::parse(text, "plan"), "plan"));
}
std::string plan_from_file(const std::string& path) { return plan::GrowthPlan::read(path).to_json().dump(); }
/// Checked as a plan file is; the same text for plans with the same content.
std::string checked_plan(std::string_view text) {
  return plan::GrowthPlan::from_json(Json::parse(text, "plan"), "plan").to_json().dump();
}
std::string checked_scores(std::string_view text) {
  return plan::Scores::from_json(Json::parse(text, "scores"), "scores").to_json().dump();
}

// The experts and routers among a model's tensors, by the table of its family.
nb::list slots_in_memory(std::string_view model) {
  const ModelDescription described = described_model(model);
  const families::ModelConfig& config = described.config;
  nb::list out;
  for (const families::TensorSlot& slot : described.slots) {
    nb::dict row;
    const families::Layout layout = slot.rule->layout;
    row["name"] = slot.name.str();
    row["role"] = families::role_name(slot.role());
    row["kind"] = families::is_router(slot.role())         ? "router"
                  : families::has_rows(slot.role())        ? "rows"
                  : families::is_copied_whole(slot.role()) ? "copied"
                                                           : "expert";
    row["layer"] = slot.layer;
    row["expert"] = slot.expert;
    row["expert_at"] = slot.expert_at;
    row["trailing"] = families::has_rows(slot.role()) ? config.rows_of(slot.role()) - config.num_experts : 0;
    row["stacked"] = layout.stacked;
    row["transposed"] = layout.transposed;
    row["interleaved"] = layout.interleaved;
    out.append(row);
  }
  return out;
}

// model_type, layers and experts: what scores.json says of its model.
nb::dict model_facts(std::string_view model) {
  const families::ModelConfig config = described_model(model).config;
  nb::dict out;
  out["model_type"] = config.family->model_type;
  out["layers"] = config.num_layers;
  out["experts"] = config.num_experts;
  return out;
}

std::string_view gate_name(families::GateFunction gate) {
  switch (gate) {
    case families::GateFunction::kSoftmaxTopK: return "softmax";
    case families::GateFunction::kTopKSoftmax: return "topk_softmax";
    case families::GateFunction::kSigmoidTopK: return "sigmoid";
    case families::GateFunction::kSqrtSoftplusTopK:
    case families::GateFunction::kUnknown: break;
  }
  return "other";
}

// How a model's routers turn logits into choices and gates.
nb::dict routing_facts(std::string_view model) {
  const families::ModelConfig config = described_model(model).config;
  const families::Routing& routing = config.routing;
  nb::dict out;
  out["gate"] =
      routing.kind == families::RouterKind::kPlain && !routing.bias_on_logits ? gate_name(routing.gate) : "other";
  out["renormalise"] = routing.renormalise && routing.gate_norm == 1;
  out["groups"] = routing.num_groups;
  out["top_groups"] = routing.top_groups;
  out["best_two"] = routing.group_score == families::GroupScore::kBestTwo;
  out["scaling"] = routing.routed_scaling;
  return out;
}

// Every metric that the inputs of one expert allow.
std::map<std::string, double> metrics(double weight_sq, double grad_sq, double weight_grad, double batch_grad_sq,
                                      double second_moment_sq, uint64_t batches) {
  const plan::UtilityInputs in{.weight_sq = weight_sq,
                               .grad_sq = grad_sq,
                               .weight_grad = weight_grad,
                               .batch_grad_sq = batch_grad_sq,
                               .second_moment_sq = second_moment_sq,
                               .batches = batches};
  std::map<std::string, double> out;
  for (const auto& metric : plan::utility_metrics()) {
    if (metric.available(in)) out[std::string(metric.name)] = metric.value(in);
  }
  return out;
}

}  // namespace

// Tensors come by DLPack, of any package: `object` to a type checker.
void bind_growth(nb::module_& module) {
  using namespace nb::literals;
  module.def("make_plan", &make_plan, "model"_a, "options"_a, "scores"_a.none());
  module.def("plan_to_toml", &plan_to_toml, "plan"_a);
  module.def("plan_from_file", &plan_from_file, "path"_a);
  module.def("checked_plan", &checked_plan, "plan"_a);
  module.def("checked_scores", &checked_scores, "scores"_a);
  module.def("slots_in_memory", &slots_in_memory, "model"_a,
             nb::sig("def slots_in_memory(model: str) -> list[dict[str, typing.Any]]"));
  module.def("model_facts", &model_facts, "model"_a, nb::sig("def model_facts(model: str) -> dict[str, typing.Any]"));
  module.def("routing_facts", &routing_facts, "model"_a,
             nb::sig("def routing_facts(model: str) -> dict[str, typing.Any]"));
  module.def("metrics", &metrics, "weight_sq"_a, "grad_sq"_a, "weight_grad"_a, "batch_grad_sq"_a, "second_moment_sq"_a,
             "batches"_a);
  nb::class_<PlanOfModel>(module, "PlanOfModel")
      .def(nb::init<std::string_view, std::string_view, bool>(), "plan"_a, "model"_a, "allow_regroup"_a)
      .def("grown_config", &PlanOfModel::grown_config)
      .def_prop_ro("experts_before", &PlanOfModel::experts_before)
      .def_prop_ro("experts_after", &PlanOfModel::experts_after)
      .def_prop_ro("split", &PlanOfModel::split)
      .def_prop_ro("top_k_factor", &PlanOfModel::top_k_factor)
      .def_prop_ro("has_router_bias", &PlanOfModel::has_router_bias)
      .def_prop_ro("keeps_step", &PlanOfModel::keeps_step)
      .def("layers", &PlanOfModel::layers)
      .def("children", &PlanOfModel::children, "layer"_a)
      .def("sources", &PlanOfModel::sources, "layer"_a, "child"_a)
      .def("copies_expert", &PlanOfModel::copies_expert, "layer"_a, "child"_a, "role"_a)
      .def("copies_moment", &PlanOfModel::copies_moment, "layer"_a, "child"_a)
      .def("step", &PlanOfModel::step, "layer"_a, "child"_a, "parent_step"_a)
      .def("grow_expert", &PlanOfModel::grow_expert, "layer"_a, "child"_a, "role"_a, "originals"_a.noconvert(),
           "out"_a.noconvert(),
           nb::sig("def grow_expert(self, layer: int, child: int, role: str, originals: collections.abc.Mapping[int, "
                   "object], out: object) -> None"))
      .def("grow_router", &PlanOfModel::grow_router, "layer"_a, "role"_a, "before"_a.noconvert(), "out"_a.noconvert(),
           nb::sig("def grow_router(self, layer: int, role: str, before: object, out: object) -> None"))
      .def("grow_expert_moment", &PlanOfModel::grow_expert_moment, "layer"_a, "child"_a, "role"_a, "kind"_a,
           "moments"_a.noconvert(), "weights"_a.noconvert(), "out"_a.noconvert(),
           nb::sig("def grow_expert_moment(self, layer: int, child: int, role: str, kind: str, moments: "
                   "collections.abc.Mapping[int, object], weights: collections.abc.Mapping[int, object], out: object) "
                   "-> None"))
      .def("grow_router_moment", &PlanOfModel::grow_router_moment, "layer"_a, "kind"_a, "before"_a.noconvert(),
           "out"_a.noconvert(),
           nb::sig("def grow_router_moment(self, layer: int, kind: str, before: object, out: object) -> None"));
}

}  // namespace coppice::python
