#include "coppice/kernels/adamw.h"

#include <algorithm>
#include <vector>

#include "coppice/base/check.h"
#include "coppice/kernels/adamw_detail.h"
#include "coppice/kernels/device_detail.h"

namespace coppice::kernels {

void adamw_step(std::span<const AdamwPart> parts, double grad_scale, const AdamwSettings& settings) {
  std::vector<AdamwPart> checked;
  checked.reserve(parts.size());
  for (const AdamwPart& part : parts) {
    if (part.master.numel() == 0) continue;
    const at::Tensor& master = part.master;
    COPPICE_CHECK(part.step >= 1, "step ", part.step);
    COPPICE_CHECK(master.scalar_type() == at::kFloat && master.device() == parts.front().master.device());
    const auto fits = [&](const at::Tensor& t) {
      return t.is_contiguous() && t.sizes() == master.sizes() && t.device() == master.device();
    };
    COPPICE_CHECK(fits(master) && fits(part.exp_avg) && fits(part.exp_avg_sq) && fits(part.grad));
    COPPICE_CHECK(part.exp_avg.scalar_type() == part.exp_avg_sq.scalar_type());
    AdamwPart& kept = checked.emplace_back(part);
    if (part.value.defined() && part.value.data_ptr() == master.data_ptr()) kept.value = at::Tensor();
    COPPICE_CHECK(!kept.value.defined() || fits(kept.value));
  }
  if (checked.empty()) return;
  detail::pick(checked.front().master, cpu::adamw_step, aten::adamw_step)(checked, grad_scale, settings);
}

}  // namespace coppice::kernels
