#include "coppice/api/error_of.h"

#include <algorithm>
#include <exception>
#include <filesystem>
#include <new>
#include <string>
#include <string_view>

#include "coppice/base/text.h"

namespace coppice::api {
namespace {

// libtorch appends the place of the exception and a stack trace to its messages.
Error error_of_foreign(std::string message) {
  message.resize(std::min(message.size(), message.find("\nException raised from ")));
  std::ranges::replace(message, '\n', ' ');
  for (const std::string_view memory : {"can't allocate memory", "out of memory"}) {
    if (message.find(memory) != std::string::npos) return {ErrorCode::kIo, message};
  }
  return {ErrorCode::kInternal, cat(message, " (a bug in coppice, please report it)")};
}

}  // namespace

Error error_of(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& e) {
    return e;
  } catch (const std::bad_alloc&) {
    return {ErrorCode::kIo, "out of memory (use fewer threads or a machine with more)"};
  } catch (const std::filesystem::filesystem_error& e) {
    return {ErrorCode::kIo, cat(e.path1(), ": ", e.code().message())};
  } catch (const std::exception& e) {
    return error_of_foreign(e.what());
  }
}

}  // namespace coppice::api
