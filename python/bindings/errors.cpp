// coppice::Error becomes the class of coppice.errors that stands for its code, with the same message.

#include <nanobind/nanobind.h>

#include <exception>

#include "coppice/base/error.h"
#include "python/bindings/bindings.h"
#include "python/bindings/text.h"

namespace coppice::python {
namespace {

namespace nb = nanobind;

const char* class_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kUsage: return "UsageError";
    case ErrorCode::kNotFound: return "NotFoundError";
    case ErrorCode::kFormat: return "FormatError";
    case ErrorCode::kShape: return "ShapeError";
    case ErrorCode::kNonFinite: return "NonFiniteError";
    case ErrorCode::kUnsupported: return "UnsupportedError";
    case ErrorCode::kIo: return "IoError";
    case ErrorCode::kPeer: return "PeerError";
    case ErrorCode::kCheckFailed: return "CheckFailedError";
    case ErrorCode::kInterrupted: return "StoppedError";
    case ErrorCode::kInternal: break;
  }
  return "InternalError";
}

void set_python_error(const Error& error) {
  const nb::object type = nb::module_::import_("coppice.errors").attr(class_of(error.code));
  PyErr_SetObject(type.ptr(), decoded(error.what()).ptr());
}

}  // namespace

void bind_errors(nb::module_&) {
  nb::register_exception_translator([](const std::exception_ptr& exception, void*) {
    try {
      std::rethrow_exception(exception);
    } catch (const Error& error) {
      set_python_error(error);
    }
  });
}

}  // namespace coppice::python
