#include <numeric>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/dist/checks_detail.h"

namespace coppice::dist {
namespace {

std::string shape_of(const at::Tensor& tensor) { return shape_text({tensor.sizes().data(), tensor.sizes().size()}); }

template <class... Parts>
[[noreturn]] void refuse(const char* call, const Parts&... parts) {
  throw Error(ErrorCode::kShape, cat(call, ": ", parts...));
}

void check_counts(const char* name, const at::Tensor& tensor, std::span<const int64_t> rows, int64_t size) {
  if (std::ssize(rows) != size) {
    refuse("all_to_all", "'", name, "_rows' has ", rows.size(), " counts; wanted ", size, ", one for each rank");
  }
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] < 0) refuse("all_to_all", "'", name, "_rows' has ", rows[i], " for rank ", i, "; wanted at least 0");
  }
  const int64_t sum = std::accumulate(rows.begin(), rows.end(), int64_t{0});
  if (tensor.dim() == 0 || tensor.size(0) != sum) {
    refuse("all_to_all", "'", name, "' has shape ", shape_of(tensor), "; its counts of rows add up to ", sum);
  }
}

}  // namespace

void check_tensor(const char* call, const char* name, const at::Tensor& tensor, at::Device device) {
  if (!tensor.defined()) refuse(call, "'", name, "' is not defined");
  if (tensor.device().type() != device.type()) {
    refuse(call, "'", name, "' is on ", tensor.device().str(), "; this group takes tensors on ", device.str());
  }
  if (!tensor.is_contiguous()) {
    refuse(call, "'", name, "' of shape ", shape_of(tensor), " is not contiguous; make it so with contiguous()");
  }
}

void check_reducible(const char* call, const at::Tensor& tensor) {
  const auto dtype = tensor.scalar_type();
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kLong && dtype != at::kBFloat16) {
    refuse(call, "no reduction of dtype ", c10::toString(dtype), "; wanted Float, Double, Long or BFloat16");
  }
}

void check_parts(const char* call, const char* large_name, const at::Tensor& large, const char* small_name,
                 const at::Tensor& small, int64_t size) {
  if (large.scalar_type() != small.scalar_type()) {
    refuse(call, "'", large_name, "' is ", c10::toString(large.scalar_type()), " and '", small_name, "' is ",
           c10::toString(small.scalar_type()), "; wanted one dtype");
  }
  if (large.numel() != size * small.numel()) {
    refuse(call, "'", large_name, "' has ", large.numel(), " elements and '", small_name, "' has ", small.numel(),
           "; wanted ", size, " times as many, one part for each rank");
  }
}

void check_rows(const at::Tensor& out, const at::Tensor& in, std::span<const int64_t> out_rows,
                std::span<const int64_t> in_rows, int64_t size) {
  check_counts("out", out, out_rows, size);
  check_counts("in", in, in_rows, size);
  if (out.scalar_type() != in.scalar_type() || out.sizes().slice(1) != in.sizes().slice(1)) {
    refuse("all_to_all", "'out' is ", c10::toString(out.scalar_type()), " ", shape_of(out), " and 'in' is ",
           c10::toString(in.scalar_type()), " ", shape_of(in), "; wanted one dtype and rows of one shape");
  }
}

void check_root(int64_t root, int64_t size) {
  if (root < 0 || root >= size) refuse("broadcast", "the root is rank ", root, "; the group has ranks 0 to ", size - 1);
}

}  // namespace coppice::dist
