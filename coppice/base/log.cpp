#include "coppice/base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <mutex>
#include <utility>

#include "coppice/base/progress.h"
#include "coppice/base/text.h"

namespace coppice {
namespace {

struct Log {
  std::mutex mutex;
  LogSink sink;
};

Log& log() {
  static Log instance;
  return instance;
}

void send(LogLevel level, std::string_view message) {
  const std::lock_guard lock(log().mutex);
  if (log().sink) log().sink(level, message);
}

}  // namespace

void set_log_sink(LogSink sink) {
  const std::lock_guard lock(log().mutex);
  log().sink = std::move(sink);
}

void log_info(std::string_view message) { send(LogLevel::kInfo, message); }

void log_warning(std::string_view message) { send(LogLevel::kWarning, message); }

LogSink stderr_sink(bool quiet) {
  const auto logger =
      std::make_shared<spdlog::logger>("coppice", std::make_shared<spdlog::sinks::stderr_color_sink_st>());
  return [logger, quiet](LogLevel level, std::string_view message) {
    if (level == LogLevel::kInfo && quiet) return;
    const bool warning = level == LogLevel::kWarning;
    const std::lock_guard lock(detail::stderr_mutex());
    detail::wipe_bar();
    logger->set_pattern(warning ? "coppice: %^warning%$: %v" : "coppice: %v");
    const std::string line = shown(message);
    logger->log(warning ? spdlog::level::warn : spdlog::level::info, spdlog::string_view_t(line.data(), line.size()));
    logger->flush();
  };
}

}  // namespace coppice
