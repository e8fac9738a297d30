#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/io/partial_directory.h"
#include "coppice/io/posix_detail.h"

namespace coppice::io::detail {

/// The finished units of one part of a long job: a text file with a header line, lines "done 4 5 6" and finally
/// "complete". A line without its newline is ignored, so an incomplete last line does no harm.
class Journal {
 public:
  /// The file's name: "part-00002-of-00003".
  static std::string name(Part part);

  struct Content {
    Part part;
    WorkIdentity identity;
    std::vector<uint64_t> done;
    bool complete = false;
    uint64_t valid_bytes = 0;  ///< up to the end of the last valid line
  };
  /// The contents of a journal; none if there is no file or its header is incomplete.
  ///
  /// Memory   the file: a few bytes per unit.
  static std::optional<Content> look(const std::filesystem::path& path);
  static std::optional<Content> parse(std::string_view text);  ///< the same for the file's text

  Journal() = default;
  /// Continues a journal or begins one, and locks it while this object exists.
  /// Throws   Error{kIo}, also if another process has locked it.
  Journal(std::filesystem::path path, Part part, const WorkIdentity& identity);

  const std::vector<uint64_t>& done() const { return done_; }
  /// The record is on the disk when the call returns. Throws Error{kIo}.
  void record(std::span<const uint64_t> units);
  void complete();

 private:
  void append(std::string_view line);

  std::filesystem::path path_;
  Descriptor file_;
  std::vector<uint64_t> done_;
};

}  // namespace coppice::io::detail
