#pragma once

// All output of the commands passes through here, so that a terminal never obeys control characters from a file.

#include <iosfwd>
#include <streambuf>
#include <string>

namespace coppice::cli {

/// While this object exists, text written to `stream` is passed on line by line, escaped by `shown_lines`.
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
