#include "coppice/score/planes.h"

#include <ATen/ops/empty.h>

#include <charconv>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/nn/host.h"

namespace coppice::score {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".safetensors";
constexpr const char* kTensor = "rows";

io::Dtype stored(at::ScalarType dtype) { return dtype == at::kBFloat16 ? io::Dtype::kBf16 : io::Dtype::kF32; }

}  // namespace

uint64_t Planes::Shape::bytes() const { return static_cast<uint64_t>(rows * dim) * c10::elementSize(dtype); }

Planes::Planes(std::string name, fs::path directory, uint64_t memory_bytes, Shape shape)
    : name_(std::move(name)), directory_(std::move(directory)), memory_bytes_(memory_bytes), shape_(shape) {
  if (directory_.empty()) return;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    const std::string file = entry.path().filename().string();
    if (!file.starts_with(name_ + "-") || !file.ends_with(kSuffix)) continue;
    int64_t layer = 0;
    const char* const begin = file.data() + name_.size() + 1;
    const char* const end = file.data() + file.size() - kSuffix.size();
    if (std::from_chars(begin, end, layer).ptr == end) planes_[layer] = open(layer);
  }
}

Planes::~Planes() = default;

std::vector<int64_t> Planes::layers() const {
  std::vector<int64_t> out;
  for (const auto& [layer, plane] : planes_) out.push_back(layer);
  return out;
}

fs::path Planes::path_of(int64_t layer) const { return directory_ / cat(name_, "-", layer, kSuffix); }

Planes::Plane Planes::open(int64_t layer) const {
  auto file = std::make_unique<io::SafetensorsFile>(io::SafetensorsFile::open(path_of(layer)));
  const auto* info = file->find(kTensor);
  if (info == nullptr || info->dtype != stored(shape_.dtype) ||
      info->shape != std::vector<int64_t>{shape_.rows, shape_.dim}) {
    throw Error(ErrorCode::kShape,
                cat(file->path(), ": does not belong to this work; wanted '", kTensor, "' of shape [", shape_.rows,
                    ", ", shape_.dim, "] (start again without --resume)"));
  }
  return {.values_RD = {}, .file = std::move(file)};
}

void Planes::begin(int64_t layer) {
  COPPICE_CHECK(writing_ < 0 && !has(layer));
  writing_ = layer;
  if (directory_.empty() || used_bytes_ + shape_.bytes() <= memory_bytes_) {
    used_bytes_ += shape_.bytes();
    written_RD_ = at::empty({shape_.rows, shape_.dim}, shape_.dtype);
    return;
  }
  io::TensorInfo info{.name = kTensor, .dtype = stored(shape_.dtype), .shape = {shape_.rows, shape_.dim}};
  writer_ = std::make_unique<io::SafetensorsWriter>(directory_ / cat(name_, ".tmp"), std::vector{std::move(info)});
}

void Planes::write(int64_t row, const at::Tensor& x_TD) {
  COPPICE_CHECK(writing_ >= 0 && x_TD.scalar_type() == shape_.dtype && x_TD.size(1) == shape_.dim);
  if (!writer_) {
    written_RD_.narrow(0, row, x_TD.size(0)).copy_(x_TD.detach());
    return;
  }
  const auto here_TD = x_TD.detach().to(at::kCPU).contiguous();
  const auto row_bytes = shape_.bytes() / static_cast<uint64_t>(shape_.rows);
  writer_->write(writer_->tensor(kTensor), static_cast<uint64_t>(row) * row_bytes, nn::host_bytes(here_TD));
}

void Planes::finish() {
  if (writer_) {
    writer_->finish();
    writer_.reset();
    std::error_code failure;
    fs::rename(directory_ / cat(name_, ".tmp"), path_of(writing_), failure);
    if (failure) throw Error(ErrorCode::kIo, cat(path_of(writing_), ": cannot be renamed: ", failure.message()));
    planes_[writing_] = open(writing_);
  } else {
    planes_[writing_] = {.values_RD = std::move(written_RD_), .file = nullptr};
  }
  writing_ = -1;
}

at::Tensor Planes::read(int64_t layer, int64_t row, int64_t count) const {
  const Plane& plane = planes_.at(layer);
  if (plane.values_RD.defined()) return plane.values_RD.narrow(0, row, count).to(shape_.device, false, /*copy=*/true);
  const auto here_TD = at::empty({count, shape_.dim}, shape_.dtype);
  const auto row_bytes = shape_.bytes() / static_cast<uint64_t>(shape_.rows);
  plane.file->read(plane.file->find(kTensor)->offset + static_cast<uint64_t>(row) * row_bytes, nn::host_bytes(here_TD));
  return here_TD.to(shape_.device);
}

void Planes::remove(int64_t layer) {
  const auto found = planes_.find(layer);
  if (found == planes_.end()) return;
  const bool was_file = found->second.file != nullptr;
  if (!was_file) used_bytes_ -= shape_.bytes();
  planes_.erase(found);
  std::error_code ignored;  // it is removed with the directory
  if (was_file) fs::remove(path_of(layer), ignored);
}

}  // namespace coppice::score
