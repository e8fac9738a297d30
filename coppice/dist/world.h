#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "coppice/dist/group.h"

namespace coppice::dist {

struct WorldSettings {
  at::Device device = at::kCPU;  ///< of the data groups
  int64_t expert_parallel = 1;   ///< R: so many consecutive ranks hold all experts of a layer; divides the size
  std::chrono::milliseconds timeout{
      std::chrono::minutes(10)};  ///< a rank that others wait for so long is taken to hang
};

/// All groups of one process. It is made once, before the model.
///
/// Ranks    making and closing it is collective.
class World {
 public:
  World(World&&) noexcept;
  World& operator=(World&&) noexcept;
  ~World();

  int64_t rank() const;
  int64_t size() const;
  /// The rank among those of this host, which picks a device.
  int64_t local_rank() const;
  /// "rank 2 (host a, process 4711)".
  std::string name_of(int64_t rank) const;

  Group& control();       ///< all ranks, for host tensors (Gloo)
  Group& all();           ///< all ranks, for tensors of the model's device
  Group& experts();       ///< R consecutive ranks: together they hold all experts of a layer
  Group& same_experts();  ///< the size / R ranks that hold the same experts as this one

 private:
  struct State;
  explicit World(std::unique_ptr<State> state);
  friend World join(const struct Seat& seat, const WorldSettings& settings);

  std::unique_ptr<State> state_;
};

}  // namespace coppice::dist
