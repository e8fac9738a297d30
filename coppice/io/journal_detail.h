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

/// What one part of a long work has done: a text file of a header line, lines "done 4 5 6" and at last "complete". A
/// line counts once its newline is there, so a torn end is as if it had not been written.
class Journal {
 public:
  /// The file's name: "part-00002-of-00003".
  static std::string name(Part part);

  struct Content {
    Part part;
    WorkIdentity identity;
    std::vector<uint64_t> done;
    bool complete = false;
    uint64_t valid_bytes = 0;  ///< up to the last whole line that makes sense
  };
  /// What a journal says; none if there is no file, or none with a whole header.
  ///
  /// Memory   the file: some bytes for each unit.
  static std::optional<Content> look(const std::filesystem::path& path);
  static std::optional<Content> parse(std::string_view text);  ///< the same of the file's text

  Journal() = default;
  /// Continues a journal, or begins one; it is this object's alone as long as it lives.
  /// Throws   Error{kIo}, also if another process has it.
  Journal(std::filesystem::path path, Part part, const WorkIdentity& identity);

  const std::vector<uint64_t>& done() const { return done_; }
  /// On the disk when it returns. Throws Error{kIo}.
  void record(std::span<const uint64_t> units);
  void complete();

 private:
  void append(std::string_view line);

  std::filesystem::path path_;
  Descriptor file_;
  std::vector<uint64_t> done_;
};

}  // namespace coppice::io::detail
