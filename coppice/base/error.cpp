#include "coppice/base/error.h"

#include "coppice/base/interrupt.h"

namespace coppice {

int exit_status(ErrorCode code) {
  switch (code) {
    case ErrorCode::kCheckFailed: return 1;
    case ErrorCode::kUsage: return 2;
    case ErrorCode::kNotFound:
    case ErrorCode::kFormat:
    case ErrorCode::kShape:
    case ErrorCode::kNonFinite:
    case ErrorCode::kUnsupported: return 3;
    case ErrorCode::kIo:
    case ErrorCode::kPeer: return 4;
    case ErrorCode::kInterrupted: return 128 + interrupt_signal();
    case ErrorCode::kInternal: break;
  }
  return 5;
}

}  // namespace coppice
