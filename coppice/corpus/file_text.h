#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace coppice::corpus {

// Plain text of one file, by its kind. Files may be packed with gzip, but for POD.

/// The file as it is.
std::string plain_text(const std::filesystem::path& file);

/// Program text without its leading comment, which is mostly a licence; line ends become newlines.
std::string code_text(const std::filesystem::path& file);

/// A manual page as `mandoc` prints it, without page header and footer, and with single spaces. Paragraphs are single
/// lines up to 1,000 characters.
///
/// Throws   Error{kIo} if mandoc is missing or fails.
std::string manual_text(const std::filesystem::path& file);

/// Perl documentation (POD) as `pod2text` prints it. A paragraph is one line.
///
/// Throws   Error{kIo} if pod2text is missing or fails.
std::string pod_text(const std::filesystem::path& file);

namespace detail {

/// `text` without the comment that it begins with.
std::string without_leading_comment(std::string_view text);

/// What `mandoc -T utf8` printed, as text: bold and underlined characters once, each line without the spaces around it
/// and with single spaces inside; without rules of tables and without the first and the last line (page header, footer).
std::string without_layout(std::string_view printed);

}  // namespace detail
}  // namespace coppice::corpus
