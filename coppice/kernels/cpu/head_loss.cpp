#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <memory>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/lane_sum.h"
#include "coppice/kernels/cpu/small_products_detail.h"
#include "coppice/kernels/cpu/vector_math_detail.h"
#include "coppice/kernels/head_loss_detail.h"
#include "coppice/kernels/parallel.h"

namespace coppice::kernels::cpu {
namespace {

using detail::exp_f32;

constexpr int64_t kSmallVocabulary = 4096;
constexpr int64_t kSmallLogits = 1 << 17;  // of a chunk in lanes: half a MB, which stays in a level-2 cache

/// The number of tokens whose logits exist at a time. Each chunk goes through the whole gradient of w, 12 D bytes for a
/// word of the vocabulary against some 20 bytes for each token, so a chunk of about D tokens costs little more than one
/// of all.
int64_t chunk_tokens(int64_t vocabulary, int64_t dim) {
  const auto in_32s = [](int64_t rows) { return (rows + 31) / 32 * 32; };
  const int64_t few_mb = in_32s((1 << 22) / vocabulary),
                most = std::max<int64_t>(256, (1 << 28) / vocabulary / 32 * 32);
  return std::min(std::max(few_mb, std::clamp<int64_t>(in_32s(dim), 256, 2048)), most);
}

template <class T>
float row_max(const T* logits, int64_t n) {
  float lane[16];
  std::fill(std::begin(lane), std::end(lane), -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    for (int j = 0; j < 16; ++j) lane[j] = std::max(lane[j], load(logits[i + j]));
  }
  for (; i < n; ++i) lane[0] = std::max(lane[0], load(logits[i]));
  return *std::max_element(std::begin(lane), std::end(lane));
}

/// The cross-entropy of one token; `power` becomes exp(logits - max), `sum` their sum.
template <class T>
COPPICE_FOR_AVX512_TOO float row_loss(const T* __restrict logits, int64_t n, int64_t target, float* __restrict power,
                                      float& sum) {
  const float max = row_max(logits, n);
  for (int64_t i = 0; i < n; ++i) power[i] = exp_f32(load(logits[i]) - max);
  sum = lane_sum<float>(n, [&](int64_t i) { return power[i]; });
  return std::log(sum) + max - load(logits[target]);
}

/// Replaces logits by scale * (softmax - one_hot(target)).
template <class T>
COPPICE_FOR_AVX512_TOO void row_gradient(const float* __restrict power, int64_t n, int64_t target, float sum,
                                         float scale, T* __restrict logits) {
  const float factor = scale / sum;
  for (int64_t i = 0; i < n; ++i) store(logits[i], factor * power[i]);
  store(logits[target], scale * (power[target] / sum - 1.0f));
}

/// Losses of a chunk's rows; with `scale` != 0 its logits become their gradients.
template <class T>
void chunk_losses(const at::Tensor& logits_CV, const int64_t* target, float scale, float* loss) {
  const int64_t n = logits_CV.size(1);
  auto* const logits = logits_CV.mutable_data_ptr<T>();
  parallel_ranges(logits_CV.size(0), std::max<int64_t>(1, (1 << 15) / n), [=](int64_t begin, int64_t end) {
    std::vector<float> power(static_cast<size_t>(n));
    for (int64_t c = begin; c < end; ++c) {
      T* const row = logits + c * n;
      loss[c] = 0.0f;
      if (target[c] < 0) {
        if (scale != 0.0f) std::fill(row, row + n, T(0.0f));
        continue;
      }
      float sum = 0;
      loss[c] = row_loss(row, n, target[c], power.data(), sum);
      if (scale != 0.0f) row_gradient(power.data(), n, target[c], sum, scale, row);
    }
  });
}

/// The number of targets that count.
int64_t check_targets(const at::Tensor& target_T, int64_t vocabulary) {
  int64_t counted = 0;
  const auto* const target = target_T.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < target_T.numel(); ++t) {
    if (target[t] < -1 || target[t] >= vocabulary) {
      throw Error(ErrorCode::kFormat,
                  cat("target id ", target[t], " at position ", t, ": found outside the vocabulary of ", vocabulary,
                      "; wanted ids below it (was the data tokenized for another model?)"));
    }
    counted += target[t] >= 0;
  }
  return counted;
}

/// Whether the products below are computed in lanes.
bool is_small(const detail::HeadInputs& in) {
  const int64_t vocabulary = in.w_VD.size(0), dim = in.w_VD.size(1);
  return vocabulary <= kSmallVocabulary && vocabulary % kNarrowLanes == 0 &&
         is_small_product(vocabulary, dim, in.x_TD.scalar_type()) && in.w_VD.scalar_type() == at::kFloat;
}

/// The three products of a chunk of C tokens, by libtorch.
class Products {
 public:
  explicit Products(const detail::HeadInputs& in) : w_VD_(in.w_VD) {}
  virtual ~Products() = default;

  virtual at::Tensor logits(const at::Tensor& x_CD) const { return at::mm(x_CD, w_VD_.t()); }
  virtual void grad_x(at::Tensor& out_CD, const at::Tensor& grad_CV) const { at::mm_out(out_CD, grad_CV, w_VD_); }
  /// sum += grad' x; the first product as it comes, several in f32.
  virtual void add_grad_w(at::Tensor& sum_VD, const at::Tensor& grad_CV, const at::Tensor& x_CD) const {
    if (!sum_VD.defined()) {
      sum_VD = at::mm(grad_CV.t(), x_CD);
    } else if (grad_CV.scalar_type() == at::kFloat) {
      sum_VD.addmm_(grad_CV.t(), x_CD);
    } else {
      sum_VD = sum_VD.to(at::kFloat).add_(at::mm(grad_CV.t(), x_CD));
    }
  }

 protected:
  at::Tensor w_VD_;
};

/// In lanes: the bits of any number of threads.
class LaneProducts : public Products {
 public:
  using Products::Products;

  at::Tensor logits(const at::Tensor& x_CD) const override {
    auto out = at::empty({x_CD.size(0), w_VD_.size(0)}, x_CD.options());
    auto* const to = out.mutable_data_ptr<float>();
    const Matrix a = Matrix::of(x_CD), b = Matrix::of(w_VD_).t();
    parallel_ranges(b.cols, kWordsPerTask, [&](int64_t begin, int64_t end) {  // by words, each of which is turned
      multiply_(a, b.cols_from(begin, end - begin), to + begin, b.cols, /*add=*/false);
    });
    return out;
  }
  void grad_x(at::Tensor& out_CD, const at::Tensor& grad_CV) const override {
    in_rows(Matrix::of(grad_CV), Matrix::of(w_VD_), kTokensPerTask, out_CD, false);
  }
  void add_grad_w(at::Tensor& sum_VD, const at::Tensor& grad_CV, const at::Tensor& x_CD) const override {
    const bool is_first = !sum_VD.defined();
    if (is_first) sum_VD = at::empty_like(w_VD_);
    in_rows(Matrix::of(grad_CV).t(), Matrix::of(x_CD), kWordsPerTask, sum_VD, !is_first);
  }

 private:
  static constexpr int64_t kWordsPerTask = 128, kTokensPerTask = 24;

  void in_rows(const Matrix& a, const Matrix& b, int64_t rows_per_task, const at::Tensor& out, bool add) const {
    auto* const to = out.mutable_data_ptr<float>();
    parallel_ranges(a.rows, rows_per_task, [&](int64_t begin, int64_t end) {
      multiply_(a.rows_from(begin, end - begin), b, to + begin * b.cols, b.cols, add);
    });
  }

  void (*multiply_)(const Matrix& a, const Matrix& b, float* out, int64_t out_step,
                    bool add) = lanes_of(this_processor()).multiply;
};

/// Of bf16 in f32, a part of the vocabulary after the other, so that little of it exists in f32.
class WidenedProducts : public Products {
 public:
  using Products::Products;

  at::Tensor logits(const at::Tensor& x_CD) const override {
    auto out = at::empty({x_CD.size(0), w_VD_.size(0)}, x_CD.options());
    const auto x = x_CD.to(at::kFloat);
    for_parts([&](int64_t begin, int64_t count) {
      out.narrow(1, begin, count).copy_(product_in_f32(x, w_VD_.narrow(0, begin, count).t()));
    });
    return out;
  }
  void grad_x(at::Tensor& out_CD, const at::Tensor& grad_CV) const override {
    const auto sum = at::zeros(out_CD.sizes(), out_CD.options().dtype(at::kFloat));
    for_parts([&](int64_t begin, int64_t count) {
      sum.addmm_(grad_CV.narrow(1, begin, count).to(at::kFloat), w_VD_.narrow(0, begin, count).to(at::kFloat));
    });
    out_CD.copy_(sum);
  }
  void add_grad_w(at::Tensor& sum_VD, const at::Tensor& grad_CV, const at::Tensor& x_CD) const override {
    if (!sum_VD.defined()) sum_VD = at::zeros(w_VD_.sizes(), w_VD_.options().dtype(at::kFloat));
    const auto x = x_CD.to(at::kFloat);
    for_parts([&](int64_t begin, int64_t count) {
      sum_VD.narrow(0, begin, count).addmm_(grad_CV.narrow(1, begin, count).to(at::kFloat).t(), x);
    });
  }

 private:
  static constexpr int64_t kPart = 1 << 22;  // numbers of w: 16 MB in f32

  template <class F>
  void for_parts(const F& f) const {
    const int64_t vocabulary = w_VD_.size(0), words = std::max<int64_t>(1, kPart / std::max<int64_t>(1, w_VD_.size(1)));
    for (int64_t begin = 0; begin < vocabulary; begin += words) f(begin, std::min(words, vocabulary - begin));
  }
};

std::unique_ptr<Products> products_for(const detail::HeadInputs& in) {
  if (is_small(in)) return std::make_unique<LaneProducts>(in);
  if (widens(in.x_TD.scalar_type()) && widens(in.w_VD.scalar_type())) return std::make_unique<WidenedProducts>(in);
  return std::make_unique<Products>(in);
}

template <class T>
detail::HeadForward forward(const detail::HeadInputs& in) {
  const int64_t tokens = in.x_TD.size(0), vocabulary = in.w_VD.size(0);
  const int64_t chunk = is_small(in) ? kSmallLogits / vocabulary : chunk_tokens(vocabulary, in.x_TD.size(1));
  const auto products = products_for(in);
  const auto counted = std::max<int64_t>(1, check_targets(in.target_T, vocabulary));
  const auto* const target = in.target_T.const_data_ptr<int64_t>();
  const auto f32 = in.x_TD.options().dtype(at::kFloat);
  detail::HeadForward out{at::empty({tokens}, f32), {}, {}, {}};
  if (in.with_gradients) out.grad_x_TD = at::empty_like(in.x_TD);
  auto* const loss = out.loss_T.mutable_data_ptr<float>();
  const float scale = in.with_gradients ? 1.0f / static_cast<float>(counted) : 0.0f;
  for (int64_t t = 0; t < tokens; t += chunk) {
    const int64_t rows = std::min(chunk, tokens - t);
    const auto x_CD = in.x_TD.narrow(0, t, rows);
    const auto logits_CV = products->logits(x_CD);
    chunk_losses<T>(logits_CV, target + t, scale, loss + t);
    if (!in.with_gradients) continue;
    auto grad_x_CD = out.grad_x_TD.narrow(0, t, rows);
    products->grad_x(grad_x_CD, logits_CV);
    if (!in.with_weight_gradient) continue;
    products->add_grad_w(out.grad_w_VD, logits_CV, x_CD);
  }
  if (out.grad_w_VD.defined()) out.grad_w_VD = out.grad_w_VD.to(in.w_VD.scalar_type());
  if (in.with_weight_gradient && tokens == 0) out.grad_w_VD = at::zeros_like(in.w_VD);
  double sum = 0;
  for (int64_t t = 0; t < tokens; ++t) sum += loss[t];
  out.mean = at::full({}, sum / static_cast<double>(counted), f32);
  return out;
}

}  // namespace

detail::HeadForward head_forward(const detail::HeadInputs& in) {
  return with_scalar(in.x_TD, [&]<class T>(T) { return forward<T>(in); });
}

void scale_in_place(at::Tensor& values, const at::Tensor& factor) {
  const auto scale = factor.item<float>();
  if (scale != 1.0f) values.mul_(scale);
}

}  // namespace coppice::kernels::cpu
