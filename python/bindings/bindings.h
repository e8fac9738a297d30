#pragma once

#include <nanobind/nanobind.h>

namespace coppice::python {

/// Each adds what its file binds to the module `_core`.
void bind_commands(nanobind::module_& module);
void bind_errors(nanobind::module_& module);
void bind_growth(nanobind::module_& module);

}  // namespace coppice::python
