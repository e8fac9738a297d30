#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace coppice::data {

// Plain text out of the markup of Debian packages. Paragraphs become single lines, set apart by empty ones.

/// Perl's POD: headings, paragraphs and verbatim examples stay, commands and formatting codes go.
///
/// Source   perlpod.
std::string strip_pod(std::string_view text);

/// A manual page in the `man` macros: headings and prose stay; synopses, tables, examples and the sections that every
/// page repeats (author, licence, translation, see also) go. A page in other macros gives nothing.
///
/// Source   groff_man(7), groff(7) for escapes.
std::string strip_roff(std::string_view text);

/// The entries of GCIDE as dictd serves it: head word, word class and definitions stay; pronunciation, etymology,
/// labels and source marks in brackets go.
std::vector<std::string> split_dictionary(std::string_view text);

/// Program text less its leading comment, which is mostly a licence; line ends become newlines.
std::string strip_code(std::string_view text);

namespace detail {

/// Runs of spaces and line ends become one space; none at the ends.
std::string one_line(std::string_view text);

/// Joins paragraphs that are not empty by empty lines.
class Paragraphs {
 public:
  void add(std::string paragraph);
  std::string text() && { return std::move(out_); }

 private:
  std::string out_;
};

}  // namespace detail
}  // namespace coppice::data
