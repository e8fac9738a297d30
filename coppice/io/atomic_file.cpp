#include "coppice/io/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/work_directory_detail.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

Descriptor directory_of(const std::filesystem::path& target) {
  Descriptor directory(::open(detail::parent_of(target).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) throw_io(target.string(), "create it", errno);
  return directory;
}

std::string temporary_for(const std::filesystem::path& target) {
  static std::atomic<uint64_t> count = 0;
  return cat(".", target.filename(), ".tmp-", static_cast<int64_t>(::getpid()), "-", ++count);
}

}  // namespace

PendingFile::PendingFile(std::filesystem::path target)
    : target_(std::move(target)),
      directory_(directory_of(target_)),
      temporary_(temporary_for(target_)),
      file_(detail::create_file_at(directory_.get(), temporary_.c_str(), detail::parent_of(target_) / temporary_)) {}

PendingFile::~PendingFile() {
  if (!renamed_) ::unlinkat(directory_.get(), temporary_.c_str(), 0);
}

void PendingFile::append(std::span<const std::byte> bytes) {
  if (buffer_.empty() && bytes.size() >= kBufferBytes) {
    const int number = detail::write_all(file_.get(), bytes, -1);
    if (number != 0) throw_io(target_.string(), "write it", number);
    return;
  }
  buffer_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (buffer_.size() >= kBufferBytes) flush();
}

void PendingFile::flush() {
  const int number = detail::write_all(file_.get(), std::as_bytes(std::span(buffer_)), -1);
  if (number != 0) throw_io(target_.string(), "write it", number);
  buffer_.clear();
}

void PendingFile::settle() {
  flush();
  detail::sync(file_, target_);
  if (const int number = file_.close(); number != 0) throw_io(target_.string(), "write it", number);
}

void PendingFile::rename() {
  const std::string name = target_.filename().string();
  if (::renameat(directory_.get(), temporary_.c_str(), directory_.get(), name.c_str()) != 0)
    throw_io(target_.string(), "rename it", errno);
  renamed_ = true;
  detail::sync(directory_, target_);
}

AtomicDirectory::AtomicDirectory(OutputPlace target)
    : work_(std::make_unique<detail::WorkDirectory>(std::move(target), LOCK_EX)) {
  work_->clear();
  work_->make_directory(detail::WorkDirectory::kModel);
}

AtomicDirectory::~AtomicDirectory() = default;

fs::path AtomicDirectory::path() const { return work_->model(); }

void AtomicDirectory::commit() { work_->move_into_place(); }

void write_file_atomically(const fs::path& path, std::string_view text) {
  PendingFile file(path);
  file.append(std::as_bytes(std::span(text)));
  file.settle();
  file.rename();
}

void check_free_space(const fs::path& directory, uint64_t bytes) {
  auto place = fs::absolute(directory);
  std::error_code missing;
  while (!fs::exists(place, missing) && place.has_relative_path()) place = place.parent_path();
  struct statvfs status;
  if (::statvfs(place.c_str(), &status) != 0) throw_io(place.string(), "read its free space", errno);
  const uint64_t available = static_cast<uint64_t>(status.f_bavail) * status.f_frsize;
  if (available < bytes) {
    throw Error(ErrorCode::kIo, cat(directory, ": ", bytes_text(available), " free; wanted ", bytes_text(bytes),
                                    " (free some, or write to another disk)"));
  }
}

}  // namespace coppice::io
