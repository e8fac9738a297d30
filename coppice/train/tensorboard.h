#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace coppice::train {

/// One number under its tag, such as {"loss", 3.2}.
using Scalar = std::pair<std::string, double>;

/// Appends scalars to a new TensorBoard event file in the directory of a run.
///
/// The two protobuf messages, Event and Summary, are encoded by hand, because libprotobuf must not be linked.
/// Source   tensorflow/core/util/event.proto, framework/summary.proto; records and masked CRC32C as in
///          lib/io/record_writer.cc.
class EventWriter {
 public:
  /// `resumed_at`: this file continues after that step; readers then ignore later steps in earlier files.
  /// Throws   Error{kIo}.
  EventWriter(const std::filesystem::path& run, std::optional<int64_t> resumed_at);

  /// Throws   Error{kIo}.
  void scalars(int64_t step, std::span<const Scalar> values);

 private:
  void write_record(const std::string& event);

  std::filesystem::path path_;
  std::ofstream file_;
};

/// CRC-32C (Castagnoli) of `bytes`. Test value: 0xe3069283 for "123456789".
uint32_t crc32c(std::string_view bytes);

}  // namespace coppice::train
