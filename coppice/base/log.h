#pragma once

#include <functional>
#include <string_view>

namespace coppice {

enum class LogLevel { kInfo, kWarning };

/// Receives every log line of the library. Default: nothing is printed (a library never prints).
using LogSink = std::function<void(LogLevel, std::string_view)>;

/// Replaces the sink; `main` installs one that writes to stderr.
void set_log_sink(LogSink sink);

/// Threads  any; the sink is never called by two threads at once.
void log_info(std::string_view message);
void log_warning(std::string_view message);

/// A sink that writes to stderr through spdlog; with `quiet`, without kInfo lines.
LogSink stderr_sink(bool quiet);

}  // namespace coppice
