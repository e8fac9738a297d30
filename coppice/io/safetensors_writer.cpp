#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "coppice/base/check.h"
#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/posix_detail.h"
#include "coppice/io/safetensors.h"
#include "coppice/io/safetensors_header_detail.h"

namespace coppice::io {
namespace {

using detail::quote;
using detail::throw_io;

constexpr size_t kPieceBytes = size_t{1} << 20;  // whole blocks of the disk

}  // namespace

SafetensorsLayout lay_out(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                          const std::map<std::string, std::string>& metadata) {
  uint64_t offset = 0;
  for (auto& t : tensors) {
    const auto bytes = detail::byte_count(t.dtype, t.shape);
    COPPICE_CHECK(bytes.has_value(), quote(t.name), " has the shape ", shape_text(t.shape));
    COPPICE_CHECK(t.bytes == 0 || t.bytes == *bytes, quote(t.name), " has ", t.bytes, " bytes, its shape ", *bytes);
    t.bytes = *bytes;
    t.offset = offset;
    offset += *bytes;
  }
  SafetensorsLayout out{.tensors = std::move(tensors), .metadata = metadata};
  uint64_t json_bytes = 0;
  detail::each_json_piece(out.tensors, metadata, kPieceBytes,
                          [&](std::string_view text) { json_bytes += text.size(); });
  out.header_bytes = detail::header_bytes(json_bytes);
  if (out.header_bytes > detail::kMaxHeaderBytes) {
    throw Error(ErrorCode::kUnsupported, cat(path, ": the header has ", out.header_bytes, " bytes; wanted at most ",
                                             detail::kMaxHeaderBytes, " (split the model into smaller shards)"));
  }
  out.file_bytes = out.header_bytes + offset;
  return out;
}

void SafetensorsLayout::each_header_piece(const std::function<void(std::string_view)>& take) const {
  // The length is the first bytes, the spaces are the last.
  const uint64_t length = header_bytes - sizeof(uint64_t);
  std::string piece(sizeof length, '\0');
  std::memcpy(piece.data(), &length, sizeof length);
  uint64_t left = header_bytes;
  const auto add = [&](std::string_view text) {
    while (!text.empty()) {
      const auto part = text.substr(0, kPieceBytes - piece.size());
      piece += part;
      text.remove_prefix(part.size());
      if (piece.size() < kPieceBytes) return;
      take(piece);
      left -= piece.size();
      piece.clear();
    }
  };
  detail::each_json_piece(tensors, metadata, kPieceBytes, add);
  piece.resize(left, ' ');
  if (!piece.empty()) take(piece);
}

std::string SafetensorsLayout::header() const {
  std::string out;
  out.reserve(header_bytes);
  each_header_piece([&](std::string_view piece) { out += piece; });
  return out;
}

struct SafetensorsWriter::State {
  enum class Role { kAlone, kMaker, kJoined };

  State(std::filesystem::path file_path, SafetensorsLayout layout, Role of_process)
      : path(std::move(file_path)),
        role(of_process),
        header(layout.header()),
        file_bytes(layout.file_bytes),
        tensors(std::move(layout.tensors)),
        written(tensors.size()),
        data_start(layout.header_bytes) {
    by_name.reserve(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      const bool is_first = by_name.emplace(tensors[i].name, i).second;
      COPPICE_CHECK(is_first, path, ": two tensors are called ", quote(tensors[i].name));
    }
  }
  ~State() {
    if (file && role != Role::kJoined) ::unlink(path.c_str());  // not finished
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  size_t index(std::string_view name) const {
    const auto it = by_name.find(name);
    COPPICE_CHECK(it != by_name.end(), path, " has no tensor ", quote(name));
    return it->second;
  }

  void make_file() {
    file = detail::create_file(path);
    detail::allocate(file, file_bytes, path.string());
    const int number = detail::write_all(file.get(), std::as_bytes(std::span(header)), 0);
    if (number != 0) throw_io(path.string(), "write the header", number);
    header.clear();
  }

  void open_file() {
    file = Descriptor(::open(path.c_str(), O_WRONLY | O_NOFOLLOW | O_CLOEXEC));
    struct stat found{};
    const bool is_there = file && ::fstat(file.get(), &found) == 0;
    if (is_there && static_cast<uint64_t>(found.st_size) == file_bytes) return;
    throw Error(ErrorCode::kIo,
                cat(path, ": ", is_there ? cat("has ", found.st_size, " bytes") : std::string("is not there"),
                    "; wanted the file of ", file_bytes,
                    " bytes that another process made for both (give a directory that all machines share)"));
  }

  std::filesystem::path path;
  Role role;
  std::string header;
  uint64_t file_bytes = 0;
  std::vector<TensorInfo> tensors;
  std::vector<std::atomic<uint64_t>> written;  // bytes of each tensor
  std::unordered_map<std::string_view, size_t> by_name;
  uint64_t data_start = 0;
  detail::Descriptor file;
};

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<State> state) : state_(std::move(state)) {}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::vector<TensorInfo> tensors,
                                     const std::map<std::string, std::string>& metadata) {
  auto layout = lay_out(path, std::move(tensors), metadata);
  state_ = std::make_unique<State>(std::move(path), std::move(layout), State::Role::kAlone);
  state_->make_file();
}

SafetensorsWriter SafetensorsWriter::make_shared(std::filesystem::path path, std::vector<TensorInfo> tensors) {
  auto layout = lay_out(path, std::move(tensors));
  auto state = std::make_unique<State>(std::move(path), std::move(layout), State::Role::kMaker);
  state->make_file();
  return SafetensorsWriter(std::move(state));
}

SafetensorsWriter SafetensorsWriter::join(std::filesystem::path path, std::vector<TensorInfo> tensors) {
  auto layout = lay_out(path, std::move(tensors));
  auto state = std::make_unique<State>(std::move(path), std::move(layout), State::Role::kJoined);
  state->open_file();
  return SafetensorsWriter(std::move(state));
}

SafetensorsWriter::~SafetensorsWriter() = default;
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;

const std::vector<TensorInfo>& SafetensorsWriter::tensors() const { return state_->tensors; }

const TensorInfo& SafetensorsWriter::tensor(std::string_view name) const {
  return state_->tensors[state_->index(name)];
}

void SafetensorsWriter::write(const TensorInfo& tensor, uint64_t offset_in_tensor, std::span<const std::byte> bytes) {
  auto& s = *state_;
  const size_t i = s.index(tensor.name);
  const auto& own = s.tensors[i];
  COPPICE_CHECK(s.file, s.path, " is finished already");
  COPPICE_CHECK(offset_in_tensor <= own.bytes && bytes.size() <= own.bytes - offset_in_tensor, s.path, ": ",
                bytes.size(), " bytes at ", offset_in_tensor, " of ", quote(own.name), ", which has ", own.bytes);
  const auto at = static_cast<int64_t>(s.data_start + own.offset + offset_in_tensor);
  const int number = detail::write_all(s.file.get(), bytes, at);
  if (number != 0) throw_io(s.path.string(), cat("write ", quote(own.name)), number);
  s.written[i] += bytes.size();
}

uint64_t SafetensorsWriter::bytes_written() const {
  uint64_t sum = 0;
  for (const auto& bytes : state_->written) sum += bytes;
  return sum;
}

uint64_t SafetensorsWriter::data_bytes() const { return state_->file_bytes - state_->data_start; }

void SafetensorsWriter::finish() {
  auto& s = *state_;
  for (size_t i = 0; s.role == State::Role::kAlone && i < s.tensors.size(); ++i) {
    const auto& t = s.tensors[i];
    COPPICE_CHECK(s.written[i] == t.bytes, s.path, ": ", s.written[i].load(), " bytes of ", quote(t.name),
                  " were written, it has ", t.bytes);
  }
  detail::sync(s.file, s.path);
  if (const int number = s.file.close(); number != 0) {
    if (s.role != State::Role::kJoined) ::unlink(s.path.c_str());
    throw_io(s.path.string(), "close it", number);
  }
}

}  // namespace coppice::io
