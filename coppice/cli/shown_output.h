#pragma once

// What the commands print goes through here: whatever a file holds, a terminal shows it and does not act on it.

#include <iosfwd>
#include <streambuf>
#include <string>

namespace coppice::cli {

/// While it lives, what is written to `stream` is passed on line by line as `shown_lines` has it.
///
/// Memory   one line.
class ShownOutput : public std::streambuf {
 public:
  explicit ShownOutput(std::ostream& stream);
  ~ShownOutput() override;
  ShownOutput(const ShownOutput&) = delete;
  ShownOutput& operator=(const ShownOutput&) = delete;

 private:
  int_type overflow(int_type c) override;
  std::streamsize xsputn(const char* text, std::streamsize length) override;
  int sync() override;
  bool pass_on();

  std::ostream& stream_;
  std::streambuf* target_;
  std::string line_;
};

}  // namespace coppice::cli
