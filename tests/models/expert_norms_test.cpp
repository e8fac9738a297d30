#include "coppice/models/expert_norms.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>

#include "coppice/base/text.h"
#include "tests/testing/tiny_models.h"

namespace coppice::models {
namespace {

using families::Model;
using families::open_model;
using families::Role;
using families::TensorSlot;

TEST(ExpertNorms, AreThoseOfEachExpertsOwnTensors) {
  const auto directory = std::filesystem::temp_directory_path() / cat("coppice-norms-", ::getpid());
  std::filesystem::remove_all(directory);
  const Model model = open_model(testing::tiny_model(directory, "mixtral"));
  const auto norms = expert_norms(model, 3);
  ASSERT_EQ(norms.size(), 2u);
  for (const TensorSlot& slot : model.slots) {
    const bool router = slot.role() == Role::kRouter;
    if (!is_expert(slot.role()) && !router) continue;
    const auto values = model.checkpoint.read_f32(slot.name);
    const size_t experts = router ? 4 : 1, width = values.size() / experts;
    for (size_t e = 0; e < experts; ++e) {
      double squares = 0;
      for (size_t i = e * width; i < (e + 1) * width; ++i) squares += double{values[i]} * values[i];
      const ExpertNorms& n = norms.at(slot.layer)[router ? e : static_cast<size_t>(slot.expert)];
      const double found = router                             ? n.router
                           : slot.role() == Role::kExpertGate ? n.gate
                           : slot.role() == Role::kExpertUp   ? n.up
                                                              : n.down;
      EXPECT_NEAR(found, std::sqrt(squares), 1e-9) << slot.name << " " << e;
    }
  }
  std::filesystem::remove_all(directory);
}

}  // namespace
}  // namespace coppice::models
