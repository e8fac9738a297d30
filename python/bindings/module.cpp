#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>

#include "coppice/base/version.h"
#include "python/bindings/bindings.h"

NB_MODULE(_core, module) {
  module.doc() = "The C++ functions behind the package coppice; use the package.";
  module.attr("__version__") = coppice::version();
  coppice::python::bind_commands(module);
  coppice::python::bind_errors(module);
  coppice::python::bind_growth(module);
}
