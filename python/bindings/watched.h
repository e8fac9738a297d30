#pragma once

#include <nanobind/nanobind.h>

#include <functional>

namespace coppice::python {

/// Runs `work` on a thread of its own without the GIL, while this thread tells Python how far it is: calls
/// `on_progress(label, done, total, unit, last)` if that is not None, and `on_log(is_warning, message)`.
///
/// Threads  one piece of work at a time; others wait.
/// Throws   what `work` throws. A signal whose Python handler raises (Ctrl-C), or an exception of a callback, stops the
///          work at its next safe point and is thrown when it has stopped.
void run_watched(const std::function<void()>& work, const nanobind::object& on_progress,
                 const nanobind::object& on_log);

}  // namespace coppice::python
