#include "coppice/grow/expand.h"

#include <array>
#include <utility>

#include "coppice/grow/grown_model.h"
#include "coppice/io/output_place.h"
#include "coppice/plan/lineage.h"

namespace coppice::grow {
namespace {

namespace fs = std::filesystem;

uint64_t optimizer_bytes(const io::ModelDirectory& files) {
  uint64_t bytes = 0;
  for (const std::string& name : files.names(io::kTrainerFolder)) {
    const fs::path file = fs::path(io::kTrainerFolder) / name;
    if (file.extension() == ".safetensors") bytes += files.state(file)->bytes;
  }
  return bytes;
}

}  // namespace

output::WrittenModel expand(const families::Model& model, const plan::GrowthPlan& plan,
                            const output::OutputSettings& settings) {
  const io::Checkpoint& source = model.checkpoint;
  io::check_output_directory(settings.out, source.directory(), settings.part.count > 1);
  GrownModel growth(model, plan);
  Json lineage =
      extend_lineage(plan::read_lineage(source.directory()), growth.plan, "expand", model.digest(), settings.record);
  const output::NewModel grown{.plan = plan::canonical(growth.plan).to_json().dump(),
                               .config = growth.config,
                               .lineage = std::move(lineage),
                               .weights = std::move(growth.weights),
                               .metadata = std::move(growth.metadata),
                               .optimizer = std::move(growth.optimizer)};
  return output::write_model(std::array{&source}, grown, settings, "expand");
}

ExpandBytes expand_bytes(const families::Model& model, const plan::GrowthPlan& plan) {
  const GrownModel growth(model, plan);
  ExpandBytes bytes;
  bytes.weights_before = model.checkpoint.total_bytes();
  bytes.weights_after = output::total_bytes(output::infos_of(growth.weights));
  if (growth.state) {
    bytes.optimizer_before = optimizer_bytes(model.checkpoint.files());
    bytes.optimizer_after = output::total_bytes(output::infos_of(*growth.optimizer));
  }
  return bytes;
}

}  // namespace coppice::grow
