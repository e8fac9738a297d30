// decoder_dump MODEL IN OUT KERNEL AUX_LOSS_COEF [transformers]: computes in f32 what the parity tests compare. KERNEL is fast,
// reference or recompute. IN is a safetensors file with `tokens` and `targets` (I64 [B, S]), and
// `starts` (of documents) if sequences hold several; OUT gets `logits`, `loss`,
// `token_loss`, `aux_loss` (per layer, or in the form of transformers) and, for each tensor on disk, `grad.NAME`.

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros_like.h>

#include <cstring>
#include <iostream>
#include <span>
#include <string>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/nn/decoder.h"

namespace {

using namespace coppice;

at::Tensor read_ids(const io::SafetensorsFile& file, std::string_view name) {
  const auto* info = file.find(name);
  if (info == nullptr || info->dtype != io::Dtype::kI64)
    throw Error(ErrorCode::kFormat, cat("no I64 tensor '", name, "'"));
  const auto bytes = file.data(*info);
  return at::from_blob(const_cast<std::byte*>(bytes.data()), info->shape, at::kLong).clone();
}

struct Output {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

Output output(std::string name, const at::Tensor& tensor) {
  const auto flat = tensor.detach().contiguous();
  const auto* data = flat.const_data_ptr<float>();
  return {std::move(name), tensor.sizes().vec(), std::vector<float>(data, data + flat.numel())};
}

void write(const std::string& path, const std::vector<Output>& outputs) {
  std::vector<io::TensorInfo> infos;
  for (const auto& o : outputs) infos.push_back({.name = o.name, .dtype = io::Dtype::kF32, .shape = o.shape});
  io::SafetensorsWriter writer(path, infos);
  for (const auto& o : outputs) writer.write(writer.tensor(o.name), 0, std::as_bytes(std::span(o.values)));
  writer.finish();
}

void dump(std::span<char*> args) {
  if (args.size() != 6 && args.size() != 7)
    throw Error(ErrorCode::kUsage, "usage: decoder_dump MODEL IN OUT KERNEL AUX_LOSS_COEF [transformers]");
  const std::string kernel = args[4];
  nn::ForwardOptions options{.recompute = kernel == "recompute", .aux_loss_coef = std::stod(args[5])};
  if (args.size() == 7) options.balance_form = nn::BalanceForm::kTransformers;
  if (kernel == "reference") options.kernel = kernels::MoeKernel::kReference;
  const auto decoder = nn::Decoder::load(families::open_model(args[1]), nn::ComputeDtype::kF32);
  const auto in = io::SafetensorsFile::open(args[2]);
  const auto tokens = read_ids(in, "tokens"), targets = read_ids(in, "targets");
  if (in.find("starts")) options.document_start_BS = read_ids(in, "starts");

  std::vector<Output> outputs{output("logits", decoder.logits(tokens, options))};
  const auto loss = decoder.loss(tokens, targets, options);
  loss.loss.backward();
  outputs.push_back(output("loss", loss.loss));
  outputs.push_back(output("token_loss", loss.token_loss));
  outputs.push_back(output("aux_loss", loss.aux_loss.defined() ? loss.aux_loss : at::zeros_like(loss.token_loss)));
  for (const auto& p : decoder.parameters()) {
    for (const auto& slice : p.slices) {
      const auto grad = slice.of(p.value.grad().contiguous()).contiguous();
      outputs.push_back(output(cat("grad.", slice.slot.name), grad.view(slice.slot.shape)));
    }
  }
  write(args[3], outputs);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    dump({argv, static_cast<size_t>(argc)});
    return 0;
  } catch (const Error& error) {
    std::cerr << error.what() << '\n';
    return exit_status(error.code);
  } catch (const c10::Error& error) {
    std::cerr << error.what_without_backtrace() << '\n';
    return exit_status(ErrorCode::kInternal);
  }
}
