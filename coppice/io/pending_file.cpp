#include "coppice/io/pending_file.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>

#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 20;

std::filesystem::path temporary_for(const std::filesystem::path& target) {
  static std::atomic<uint64_t> count = 0;
  return detail::parent_of(target) /
         cat(".", target.filename(), ".tmp-", static_cast<int64_t>(::getpid()), "-", ++count);
}

}  // namespace

PendingFile::PendingFile(std::filesystem::path target)
    : target_(std::move(target)), temporary_(temporary_for(target_)), file_(detail::create_file(temporary_)) {}

PendingFile::~PendingFile() {
  if (!renamed_) ::unlink(temporary_.c_str());
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
  detail::sync(file_, temporary_);
  if (const int number = file_.close(); number != 0) throw_io(target_.string(), "write it", number);
}

void PendingFile::rename() {
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) throw_io(target_.string(), "put it in place", errno);
  renamed_ = true;
  detail::sync_directory(detail::parent_of(target_));
}

}  // namespace coppice::io
