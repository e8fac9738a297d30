#include "coppice/dist/all_or_none.h"

#include <ATen/ops/from_blob.h>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::dist {
namespace {

/// The host's bytes as a tensor; they outlive it.
at::Tensor bytes_tensor(std::string& text) {
  return at::from_blob(text.data(), {std::ssize(text)}, at::TensorOptions().dtype(at::kByte));
}

at::Tensor number_tensor(int64_t& number) { return at::from_blob(&number, {1}, at::TensorOptions().dtype(at::kLong)); }

}  // namespace

void all_or_none(Group& group, const std::function<void()>& step) {
  std::exception_ptr mine;
  std::string why;
  try {
    step();
  } catch (const std::exception& e) {
    mine = std::current_exception();
    why = e.what();
  }
  int64_t first = mine ? group.rank() : group.size();
  group.all_reduce(number_tensor(first), Reduce::kMin).wait();
  if (first == group.size()) return;
  why = broadcast_text(group, why, first);
  if (mine) std::rethrow_exception(mine);
  throw Error(ErrorCode::kPeer, cat(group.name_of(first), " failed: ", why));
}

std::string broadcast_text(Group& group, const std::string& text, int64_t root) {
  std::string out = group.rank() == root ? text : std::string();
  int64_t length = std::ssize(out);
  group.broadcast(number_tensor(length), root).wait();
  if (length == 0) return out;
  out.resize(static_cast<size_t>(length));
  group.broadcast(bytes_tensor(out), root).wait();
  return out;
}

}  // namespace coppice::dist
