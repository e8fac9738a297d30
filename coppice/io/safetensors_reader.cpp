#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/safetensors.h"
#include "coppice/io/safetensors_header_detail.h"

namespace coppice::io {
struct SafetensorsFile::State {
  State(Descriptor file, const std::filesystem::path& file_path)
      : path(file_path),
        mapping(std::move(file), file_path),
        header(detail::parse_header(mapping.bytes(), file_path.string())) {
    // The parsed header is not read again. A hint, as in release().
    const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
    const size_t pages = header.data_start / page * page;
    if (pages > 0) ::madvise(const_cast<std::byte*>(mapping.bytes().data()), pages, MADV_DONTNEED);
  }

  std::filesystem::path path;
  MappedFile mapping;
  detail::Header header;
};

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) { return open(open_to_read(path), path); }

SafetensorsFile SafetensorsFile::open(Descriptor file, const std::filesystem::path& path) {
  SafetensorsFile out;
  out.state_ = std::make_shared<const State>(std::move(file), path);
  return out;
}

const std::filesystem::path& SafetensorsFile::path() const { return state_->path; }
const std::vector<TensorInfo>& SafetensorsFile::tensors() const { return state_->header.tensors; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return state_->header.metadata; }
uint64_t SafetensorsFile::data_start() const { return state_->header.data_start; }

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto& [tensors, by_name, metadata, start] = state_->header;
  const auto it = std::ranges::lower_bound(by_name, name, {}, [&](uint32_t i) { return tensors[i].name.view(); });
  return it == by_name.end() || tensors[*it].name != name ? nullptr : &tensors[*it];
}

std::span<const std::byte> SafetensorsFile::data(const TensorInfo& tensor) const {
  const auto section = state_->mapping.bytes().subspan(data_start());
  COPPICE_CHECK(tensor.offset <= section.size() && tensor.bytes <= section.size() - tensor.offset, path(), ": '",
                tensor.name, "'");
  state_->mapping.check_whole();
  return section.subspan(tensor.offset, tensor.bytes);
}

void SafetensorsFile::read(uint64_t offset, std::span<std::byte> out) const {
  COPPICE_CHECK(out.size() <= state_->mapping.bytes().size() - data_start() &&
                    offset <= state_->mapping.bytes().size() - data_start() - out.size(),
                path(), ": ", out.size(), " bytes at ", offset);
  auto at = static_cast<off_t>(data_start() + offset);
  while (!out.empty()) {
    const ssize_t n = ::pread(state_->mapping.file().get(), out.data(), out.size(), at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) detail::throw_io(path().string(), "read it", errno);
    if (n == 0) state_->mapping.throw_truncated(static_cast<uint64_t>(at));
    out = out.subspan(static_cast<size_t>(n));
    at += n;
  }
}

bool SafetensorsFile::clone(uint64_t offset, uint64_t bytes, int to, uint64_t to_offset) const {
  file_clone_range range{};
  range.src_fd = state_->mapping.file().get();
  range.src_offset = data_start() + offset;
  range.src_length = bytes;
  range.dest_offset = to_offset;
  return ::ioctl(to, FICLONERANGE, &range) == 0;
}

void SafetensorsFile::release(const TensorInfo& tensor) const {
  const auto bytes = data(tensor);
  if (bytes.empty()) return;
  // Rounds outwards to whole pages: a neighbour's page is read again if needed, while rounding inwards would leave two
  // pages per tensor.
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t before = reinterpret_cast<uintptr_t>(bytes.data()) % page;
  // A hint: if the kernel refuses it, the pages only stay resident. It changes no bytes, hence the cast.
  ::madvise(const_cast<std::byte*>(bytes.data()) - before, before + bytes.size(), MADV_DONTNEED);
}

}  // namespace coppice::io
