#include "coppice/train/ranks.h"

#include "coppice/base/check.h"
#include "coppice/dist/all_or_none.h"

namespace coppice::train {

void on_first_rank(dist::World* world, const std::function<void()>& act) {
  if (!world) return act();
  dist::all_or_none(world->control(), [&] {
    if (world->rank() == 0) act();
  });
}

std::string from_first_rank(dist::World* world, const std::function<std::string()>& make) {
  std::string text;
  on_first_rank(world, [&] { text = make(); });
  return world ? dist::broadcast_text(world->control(), text, 0) : text;
}

void require_same(dist::World* world, const std::string& what, const std::string& text) {
  if (!world) return;
  const std::string first = dist::broadcast_text(world->control(), text, 0);
  dist::all_or_none(world->control(), [&] { COPPICE_CHECK(first == text, what, " differs from that of rank 0"); });
}

}  // namespace coppice::train
