#include "coppice/io/pending_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>

#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io {
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

}  // namespace coppice::io
