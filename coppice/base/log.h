#pragma once

#include <functional>
#include <string_view>

namespace coppice {

enum class LogLevel { kInfo, kWarning };

/// Receives every log line of the library. Default: nothing is printed (a library never prints).
using LogSink = std::function<void(LogLevel, std::string_view)>;

/// Replaces the sink; `main` installs one that writes to stderr.
void set_log_sink(LogSink sink);

/// Threads  any; calls of the sink are serialised.
void log_info(std::string_view message);
void log_warning(std::string_view message);

/// A sink on stderr, through spdlog. "quiet" drops kInfo.
LogSink stderr_sink(bool quiet);

}  // namespace coppice
