#pragma once

#include <exception>

#include "coppice/base/error.h"

namespace coppice::api {

/// `exception` as an Error: those of the standard library get the code of what they mean to the user; any other is our
/// bug.
Error error_of(const std::exception_ptr& exception);

}  // namespace coppice::api
