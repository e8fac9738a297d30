#include "coppice/cli/shown_output.h"

#include <ostream>
#include <string_view>

#include "coppice/base/text.h"

namespace coppice::cli {

ShownOutput::ShownOutput(std::ostream& stream) : stream_(stream), target_(stream.rdbuf(this)) {}

ShownOutput::~ShownOutput() {
  pass_on();
  stream_.rdbuf(target_);
}

bool ShownOutput::pass_on() {
  const std::string text = shown_lines(line_);
  line_.clear();
  return target_->sputn(text.data(), static_cast<std::streamsize>(text.size())) ==
         static_cast<std::streamsize>(text.size());
}

ShownOutput::int_type ShownOutput::overflow(int_type c) {
  if (traits_type::eq_int_type(c, traits_type::eof())) return traits_type::not_eof(c);
  const char one = traits_type::to_char_type(c);
  return xsputn(&one, 1) == 1 ? c : traits_type::eof();
}

// Characters may arrive in pieces; a line always ends between characters.
std::streamsize ShownOutput::xsputn(const char* text, std::streamsize length) {
  const std::string_view piece(text, static_cast<size_t>(length));
  line_ += piece;
  return piece.find('\n') == std::string_view::npos || line_.back() != '\n' || pass_on() ? length : 0;
}

int ShownOutput::sync() { return pass_on() && target_->pubsync() == 0 ? 0 : -1; }

}  // namespace coppice::cli
