#pragma once

// The steps of an inference and what they know so far.

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "coppice/families/limits.h"
#include "coppice/infer/infer.h"
#include "coppice/infer/tensor_names.h"

namespace coppice::infer::detail {

struct Tensor {
  std::string_view name;
  const io::TensorInfo* info = nullptr;
  Kind kind = Kind::kOther;
  int64_t layer = -1;  ///< in Inference::layers; -1: in none that has experts

  const io::TensorShape& shape() const { return info->shape; }
  bool has_dim(int64_t size) const;
  std::string text() const;  ///< "'model.x.weight' F32 [8, 4]"
};

/// The experts of one module: "model.layers.3.mlp". Most layers have one.
struct Unit {
  bool is_numbered = false;
  size_t router = SIZE_MAX;
};

struct Layer {
  std::string prefix, tower;          ///< "model.layers.3", "model.layers"; the same if it has no number: "mtp"
  int64_t number = -1;                ///< -1: it has none
  std::map<std::string, Unit> units;  ///< by module
  std::vector<size_t> members;        ///< every tensor below the prefix

  /// The longest module of experts, other than the layer itself, that `name` lies in; empty if there is none.
  std::string_view module_of(std::string_view name) const;
  std::string_view rest(std::string_view name) const { return name.substr(prefix.size() + 1); }
};

class Inference {
 public:
  Inference(std::span<const io::TensorInfo* const> infos, ExpertCount count);

  void find_numbered();              // rule 2
  void find_stacked();               // rule 2
  void find_members();               // the tensors of each layer, and what else has the size E
  void find_routers();               // rule 3
  void refuse_token_tables() const;  // rule 3
  void explain_rest();               // rule 4
  void compare_layers();             // rule 3: all layers of a tower are alike

  std::vector<Tensor> tensors;  ///< sorted by name
  std::vector<Layer> layers;
  ExpertCount count;
  std::vector<std::string> notes;
  /// A list of layers, or one layer that has no number.
  struct Tower {
    std::string name;
    bool is_numbered = true;
    size_t layers = 0;
    int64_t last = -1;              ///< number of its last layer with experts
    int64_t first_layer = -1;       ///< as TensorRule::first_layer
    bool counts_from_last = false;  ///< its layers are {M} in a family file
  };
  std::vector<Tower> towers;  ///< the main one first

 private:
  Unit& unit(const std::string& layer, const std::string& module);
  bool is_left_alone(std::string_view name) const;
  void place_stack(const std::string& layer, const std::string& module, const std::vector<size_t>& members);
  void place_flat(const std::string& module, const std::vector<size_t>& members, const Unit& unit);
  void check_lists_of_experts(const Layer& layer) const;
  /// Whether the size may be one for each of several things that every expert has, and no size of config.json.
  bool is_strange_multiple(int64_t size) const { return is_multiple(size) && !sizes_.contains(size); }
  bool is_multiple(int64_t size) const { return size > count.experts && size % count.experts == 0; }
  bool is_size_in_config(int64_t size) const;
  void check_towers() const;
  void number_towers();
  size_t router_of(const Layer& layer, const std::string& module) const;
  void explain(Layer& layer, size_t index, const std::set<std::string, std::less<>>& router_modules,
               const std::set<std::string_view>& routers);

  std::unordered_map<std::string, size_t> layer_at_;  // prefix -> index in layers
  std::set<std::string> left_alone_;                  // modules of another part's experts
  std::vector<size_t> vectors_;                       // vectors below stacked experts, to be explained
  std::set<int64_t> sizes_;                           // dimensions that config.json has
  bool is_size_ = false;                              // E is one of them
  std::string elsewhere_;                             // a tensor with a dimension E outside the experts; empty: none
};

}  // namespace coppice::infer::detail
