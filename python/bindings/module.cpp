#include <nanobind/nanobind.h>
#include <nanobind/stl/string_view.h>

#include "coppice/base/version.h"
#include "python/bindings/bindings.h"

namespace {

// All of coppice is compiled for x86-64-v3; on less it would end with an illegal instruction.
void check_processor() {
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) return;
  throw nanobind::import_error(
      "coppice needs a processor with AVX2, FMA and BMI2 (x86-64-v3), which this one is not; use a newer machine");
}

}  // namespace

NB_MODULE(_core, module) {
  module.doc() = "The C++ functions behind the package coppice; use the package.";
  check_processor();
  // A script that ends with an exception keeps what its frames hold; that is no leak to tell its user of.
  nanobind::set_leak_warnings(false);
  module.def("version", &coppice::version, "The version of coppice.");
  coppice::python::bind_commands(module);
  coppice::python::bind_errors(module);
  coppice::python::bind_growth(module);
}
