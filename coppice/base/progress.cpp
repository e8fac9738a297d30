#include "coppice/base/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <utility>

#include "coppice/base/text.h"

namespace coppice {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr auto kSilence = milliseconds(1000);
constexpr auto kTerminalPause = milliseconds(100);
constexpr auto kSinkPause = milliseconds(50);
constexpr auto kLinePause = milliseconds(10000);

std::atomic<bool> enabled = false;
std::atomic<int> bars_alive = 0;
bool bar_on_line = false;  // guarded by stderr_mutex()

std::mutex sink_mutex;
ProgressSink sink;  // guarded by sink_mutex

bool on_terminal() {
  static const bool answer = ::isatty(STDERR_FILENO) == 1;
  return answer;
}

size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string amount_text(double amount, ProgressUnit unit) {
  if (unit == ProgressUnit::kBytes) return bytes_text(static_cast<uint64_t>(amount));
  if (unit == ProgressUnit::kTokens) return count_text(amount);
  return amount < 1e6 ? number_text(std::floor(amount), 6) : count_text(amount);
}

std::string unit_name(ProgressUnit unit) {
  return unit == ProgressUnit::kBytes ? std::string() : cat(" ", unit_text(unit));
}

std::string rate_text(double per_second, ProgressUnit unit) {
  if (unit != ProgressUnit::kBytes && unit != ProgressUnit::kTokens)
    return cat(number_text(per_second, 3), unit_name(unit), "/s");
  return cat(amount_text(per_second, unit), unit_name(unit), "/s");
}

std::string bar_text(double share) {
  constexpr size_t kWidth = 24;
  const auto full = static_cast<size_t>(share * kWidth);
  return cat("[", std::string(full, '#'), std::string(kWidth - full, '.'), "] ");
}

}  // namespace

std::string_view unit_text(ProgressUnit unit) {
  switch (unit) {
    case ProgressUnit::kBytes: return "bytes";
    case ProgressUnit::kItems: return "items";
    case ProgressUnit::kSteps: return "steps";
    case ProgressUnit::kTokens: break;
  }
  return "tokens";
}

std::mutex& detail::stderr_mutex() {
  static std::mutex mutex;
  return mutex;
}

void detail::wipe_bar() {
  if (!bar_on_line) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  bar_on_line = false;
}

std::string detail::progress_text(const ProgressView& view) {
  const auto done = static_cast<double>(view.done);
  const auto total = static_cast<double>(view.total);
  const double rate = done / view.seconds;
  std::string line = cat(view.label, "  ");
  if (view.total > 0) {
    const double share = std::min(1.0, done / total);
    if (view.bar) line += bar_text(share);
    line += cat(static_cast<int>(share * 100), " %  ", amount_text(done, view.unit), " of ",
                amount_text(total, view.unit), unit_name(view.unit));
  } else {
    line += cat(amount_text(done, view.unit), unit_name(view.unit));
  }
  line += cat("  ", rate_text(rate, view.unit));
  if (view.last) {
    line += cat("  in ", duration_text(view.seconds));
  } else if (view.total > view.done && view.done > 0) {
    line += cat("  ", duration_text((total - done) / rate), " left");
  }
  if (!view.note.empty()) line += cat("  ", view.note);
  return line;
}

void enable_progress(bool on) { enabled = on; }

void set_progress_sink(ProgressSink new_sink) {
  const std::lock_guard lock(sink_mutex);
  sink = std::move(new_sink);
}

Progress::Progress(std::string label, uint64_t total, ProgressUnit unit)
    : label_(std::move(label)),
      total_(total),
      unit_(unit),
      start_(Clock::now()),
      drawn_(start_),
      outermost_(bars_alive++ == 0) {}

Progress::~Progress() {
  const std::lock_guard lock(mutex_);
  if (shown_) draw(true);
  if (outermost_) (void)tell(true);
  --bars_alive;
}

void Progress::advance(uint64_t amount) {
  const std::lock_guard lock(mutex_);
  done_ += amount;
  if (!outermost_) return;
  const auto now = Clock::now();
  if (now - drawn_ >= kSinkPause && tell(false)) {
    drawn_ = now;
    return;
  }
  if (!enabled) return;
  const auto pause = on_terminal() ? kTerminalPause : kLinePause;
  if (now - start_ < kSilence || now - drawn_ < pause) return;
  drawn_ = now;
  draw(false);
}

void Progress::note(std::string text) {
  const std::lock_guard lock(mutex_);
  note_ = std::move(text);
}

ProgressView Progress::view(bool last) const {
  return {.label = label_,
          .note = note_,
          .done = done_,
          .total = total_,
          .unit = unit_,
          .seconds = std::chrono::duration<double>(Clock::now() - start_).count(),
          .last = last};
}

bool Progress::tell(bool last) {
  const std::lock_guard lock(sink_mutex);
  if (sink) sink(view(last));
  return static_cast<bool>(sink);
}

void Progress::draw(bool last) {
  const std::string label = shown(label_), note = shown(note_);
  ProgressView what = view(last);
  what.label = label;
  what.note = note;
  what.bar = on_terminal();
  std::string line = detail::progress_text(what);
  const std::lock_guard lock(detail::stderr_mutex());
  if (on_terminal()) {
    if (line.size() >= terminal_width()) line.resize(terminal_width() - 1);
    line = cat("\r\x1b[K", line, last ? "\n" : "");
    bar_on_line = !last;
  } else {
    line += '\n';
  }
  std::fputs(line.c_str(), stderr);
  std::fflush(stderr);
  shown_ = true;
}

}  // namespace coppice
