#include "coppice/train/tensorboard.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <cstring>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/train/run_directory.h"

namespace coppice::train {
namespace {

// Field numbers of the messages.
constexpr int kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5, kEventSessionLog = 7;
constexpr int kSummaryValue = 1, kValueTag = 1, kValueSimple = 2, kSessionStatus = 1;
constexpr uint64_t kSessionStart = 1;

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

template <class T>
void put_fixed(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little);
  std::array<char, sizeof(T)> bytes;
  std::memcpy(bytes.data(), &value, sizeof(T));
  out.append(bytes.data(), bytes.size());
}

void put_varint_field(std::string& out, int field, uint64_t value) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | 0);
  put_varint(out, value);
}

void put_bytes_field(std::string& out, int field, std::string_view bytes) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}

void put_field(std::string& out, int field, double value) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | 1);
  put_fixed(out, value);
}

void put_field(std::string& out, int field, float value) {
  put_varint(out, static_cast<uint64_t>(field) << 3 | 5);
  put_fixed(out, value);
}

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string event_at(int64_t step) {
  std::string event;
  put_field(event, kEventWallTime, wall_time());
  put_varint_field(event, kEventStep, static_cast<uint64_t>(step));
  return event;
}

uint32_t masked_crc(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8u; }

constexpr std::array<uint32_t, 256> kCrcTable = [] {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
    table[i] = crc;
  }
  return table;
}();

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ static_cast<uint8_t>(c)) & 0xff];
  return ~crc;
}

EventWriter::EventWriter(const std::filesystem::path& run, std::optional<int64_t> resumed_at) {
  std::array<char, 256> host{};
  if (gethostname(host.data(), host.size() - 1) != 0) host[0] = '-';
  path_ = run / cat(kEventsPrefix, static_cast<int64_t>(wall_time()), ".", std::string_view(host.data()), ".",
                    static_cast<int64_t>(getpid()));
  file_.open(path_, std::ios::binary | std::ios::app);
  std::string version = event_at(0);
  put_bytes_field(version, kEventFileVersion, "brain.Event:2");
  write_record(version);
  if (resumed_at) {
    std::string session;
    put_varint_field(session, kSessionStatus, kSessionStart);
    std::string event = event_at(*resumed_at + 1);
    put_bytes_field(event, kEventSessionLog, session);
    write_record(event);
  }
}

void EventWriter::scalars(int64_t step, std::span<const Scalar> values) {
  std::string summary;
  for (const auto& [tag, value] : values) {
    std::string item;
    put_bytes_field(item, kValueTag, tag);
    put_field(item, kValueSimple, static_cast<float>(value));
    put_bytes_field(summary, kSummaryValue, item);
  }
  std::string event = event_at(step);
  put_bytes_field(event, kEventSummary, summary);
  write_record(event);
}

void EventWriter::write_record(const std::string& event) {
  std::string record;
  put_fixed(record, static_cast<uint64_t>(event.size()));
  put_fixed(record, masked_crc(record));
  record += event;
  put_fixed(record, masked_crc(event));
  if (!file_.write(record.data(), static_cast<std::streamsize>(record.size())).flush()) {
    throw Error(ErrorCode::kIo, cat(path_, ": cannot be written: ", std::strerror(errno)));
  }
}

}  // namespace coppice::train
