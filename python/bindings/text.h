#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <string_view>

namespace coppice::python {

// Text between Python and C++ as Python does it for names of files: bytes that are not UTF-8 survive the way there and
// back.

inline std::string encoded(nanobind::handle text) {
  const auto bytes = nanobind::steal<nanobind::bytes>(PyUnicode_EncodeFSDefault(text.ptr()));
  if (!bytes.is_valid()) throw nanobind::python_error();
  return {bytes.c_str(), bytes.size()};
}

inline nanobind::str decoded(std::string_view text) {
  auto out = nanobind::steal<nanobind::str>(
      PyUnicode_DecodeFSDefaultAndSize(text.data(), static_cast<Py_ssize_t>(text.size())));
  if (!out.is_valid()) throw nanobind::python_error();
  return out;
}

}  // namespace coppice::python
