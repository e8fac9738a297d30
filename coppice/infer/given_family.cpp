#include "coppice/infer/given_family.h"

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/families/model_config.h"
#include "coppice/infer/infer.h"

namespace coppice::infer {
namespace {

bool is_known(const io::Checkpoint& checkpoint) {
  try {
    (void)families::read_config(checkpoint.config(), "config.json");
    return true;
  } catch (const Error& error) {
    return error.code != ErrorCode::kUnsupported;  // another error is told when the model is opened
  }
}

}  // namespace

GivenFamily::GivenFamily(const std::optional<std::filesystem::path>& given, const std::filesystem::path& directory) {
  if (!given) return;
  if (*given != kAuto) {
    file_ = families::FamilyFile::read(*given);
    return;
  }
  auto checkpoint = io::Checkpoint::open(directory);
  if (is_known(checkpoint)) {
    log_info("coppice knows the model's family; nothing is inferred");
    return;
  }
  auto [inferred, file] = infer_family(std::move(checkpoint));
  file_ = std::move(file);
  log_warning(
      cat("the family '", inferred.count.model_type, "' is inferred: ", inferred.count.experts,
          " experts; the gate function and the purpose of each tensor are unknown, so experts are copied and no "
          "verdict says that the function is kept (`coppice inspect --infer` shows what was found)"));
}

}  // namespace coppice::infer
