#include <ATen/core/grad_mode.h>

#include "coppice/dist/checks_detail.h"
#include "coppice/dist/group.h"

namespace coppice::dist {
namespace {

void copy_unless_same(const at::Tensor& out, const at::Tensor& in) {
  if (out.const_data_ptr() == in.const_data_ptr()) return;
  const at::NoGradGuard no_grad;
  out.view({out.numel()}).copy_(in.view({in.numel()}));
}

class Single final : public Group {
 public:
  Single(at::Device device, std::string name) : device_(device), name_(std::move(name)) {}

  int64_t rank() const override { return 0; }
  int64_t size() const override { return 1; }
  std::string name_of(int64_t) const override { return name_; }
  bool copies() const override { return false; }

  Work all_reduce(const at::Tensor& inout, Reduce) override {
    check_tensor("all_reduce", "inout", inout, device_);
    check_reducible("all_reduce", inout);
    return {};
  }

  Work reduce_scatter(const at::Tensor& out, const at::Tensor& in) override {
    check_pair("reduce_scatter", out, in);
    check_reducible("reduce_scatter", in);
    check_parts("reduce_scatter", "in", in, "out", out, 1);
    copy_unless_same(out, in);
    return {};
  }

  Work all_gather(const at::Tensor& out, const at::Tensor& in) override {
    check_pair("all_gather", out, in);
    check_parts("all_gather", "out", out, "in", in, 1);
    copy_unless_same(out, in);
    return {};
  }

  Work all_to_all(const at::Tensor& out, const at::Tensor& in, std::span<const int64_t> out_rows,
                  std::span<const int64_t> in_rows) override {
    check_pair("all_to_all", out, in);
    check_rows(out, in, out_rows, in_rows, 1);
    check_parts("all_to_all", "out", out, "in", in, 1);
    copy_unless_same(out, in);
    return {};
  }

  Work broadcast(const at::Tensor& inout, int64_t root) override {
    check_tensor("broadcast", "inout", inout, device_);
    check_root(root, 1);
    return {};
  }

 private:
  void check_pair(const char* call, const at::Tensor& out, const at::Tensor& in) const {
    check_tensor(call, "out", out, device_);
    check_tensor(call, "in", in, device_);
  }

  const at::Device device_;
  const std::string name_;
};

}  // namespace

std::shared_ptr<Group> single(at::Device device, std::string name) {
  return std::make_shared<Single>(device, std::move(name));
}

}  // namespace coppice::dist
