#pragma once

#include <stdexcept>
#include <string>

namespace coppice {

/// The kind of error, from the user's point of view. Each code has one exit status.
enum class ErrorCode {
  kUsage,        ///< the command line or configuration is wrong (exit 2)
  kNotFound,     ///< a file, tensor or name that was asked for does not exist (3)
  kFormat,       ///< a file does not follow its format (3)
  kShape,        ///< a tensor does not have the shape or dtype that its role requires (3)
  kNonFinite,    ///< NaN or infinity where a number is needed; also when training diverged (3)
  kUnsupported,  ///< valid input that this build cannot handle (3)
  kIo,           ///< the operating system refused: disk full, permission, missing tool (4)
  kPeer,         ///< another rank failed; its own log has the reason (4)
  kCheckFailed,  ///< a check the user asked for did not hold (1)
  kInterrupted,  ///< SIGINT or SIGTERM, after a clean stop (130 or 143)
  kInternal,     ///< our bug (5)
};

/// The one exception of coppice. The message says: subject, found, wanted, what to do.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode error_code, const std::string& message) : std::runtime_error(message), code(error_code) {}

  const ErrorCode code;
};

/// The process exit status that belongs to `code`.
int exit_status(ErrorCode code);

}  // namespace coppice
