#include "coppice/dist/group.h"

#include <exception>

namespace coppice::dist {

Work& Work::operator=(Work&& other) noexcept {
  if (this != &other) {
    Work before(std::move(*this));
    pending_ = std::move(other.pending_);
  }
  return *this;
}

// An exception under way says that something is lost already: waiting for the other ranks would only keep it from the
// user. The backend keeps the tensors until it is done with them.
Work::~Work() {
  if (!pending_ || std::uncaught_exceptions() > 0) return;
  try {
    pending_->wait();
  } catch (const std::exception&) {
  }
}

void Work::wait() {
  if (const auto pending = std::move(pending_)) pending->wait();
}

}  // namespace coppice::dist
