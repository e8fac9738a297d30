#include "coppice/cli/voice.h"

#include <string_view>

#include "coppice/base/log.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"

namespace coppice::cli {
namespace {

std::string& speaker_of_process() {
  static std::string speaker;
  return speaker;
}

}  // namespace

void speak_as(int64_t rank) {
  if (rank == 0) return;
  enable_progress(false);
  set_log_sink([rank, sink = stderr_sink(true)](LogLevel level, std::string_view message) {
    if (level == LogLevel::kWarning) sink(level, cat("rank ", rank, ": ", message));
  });
}

void speak_as(const std::optional<output::PartOption>& part) {
  if (!part || !part->is_auto || part->part.count == 1) return;
  const int64_t rank = part->part.index - 1;
  speak_as(rank);
  speaker_of_process() = cat("rank ", rank, ", part ", part->part.to_text(), ": ");
}

const std::string& speaker() { return speaker_of_process(); }

}  // namespace coppice::cli
