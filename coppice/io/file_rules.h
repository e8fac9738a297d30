#pragma once

// What happens to the files of a model directory when the model is expanded, undone or converted.

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::io {

class Checkpoint;

enum class FileDecision {
  kRewritten,  ///< written for the new model
  kCarried,    ///< copied byte for byte
  kChecked,    ///< copied byte for byte, but left out if its text counts experts or names them by number
  kLeftOut,    ///< not copied; the user is told
  kRefused,    ///< an error until the user has moved the file away
};

/// "rewritten", "copied", "copied if it does not mention experts", "left out", "refused".
std::string_view decision_name(FileDecision decision);

inline constexpr std::string_view kQuantisationRecords = "quantisation records";

/// One kind of file.
struct FileRule {
  std::string_view kind;
  /// Patterns, separated by spaces; `*` stands for any characters but '/'. A pattern that ends with '/' is a directory
  /// with its contents, otherwise a file; one that begins with '/' is at the top of the model directory, otherwise
  /// anywhere.
  std::string_view patterns;
  FileDecision decision;
  std::string_view reason;  ///< the reason and what to do; may be empty
};

/// The table. The outermost directory that matches a row decides for all its contents; otherwise the first row that
/// matches the file. The last row matches every file.
std::span<const FileRule> file_rules();
/// The rule for a whole directory; none if each of its files has its own.
const FileRule* folder_rule(const std::filesystem::path& relative);
/// The rule for a file, relative to the model directory. Weights that the model is read from are rewritten whatever
/// their name, so ask sort_files for those.
const FileRule& file_rule(const std::filesystem::path& relative);

struct JudgedFile {
  std::string name;  ///< relative; a folder ends in '/' and stands for all in it
  std::string reason;
};

/// The files of a model directory that are not rewritten, each sorted by name.
struct SortedFiles {
  std::vector<std::filesystem::path> carried;
  std::vector<JudgedFile> left_out, refused;
};

/// Memory   the names, and 4 MiB.
/// Throws   Error{kFormat}: a symbolic link that leaves the directory or leads to a directory or to nothing, a named
///          pipe or device. Files that are refused are no error here.
SortedFiles sort_files(const Checkpoint& checkpoint);

/// The same for work that writes a changed copy.
///
/// Throws   also Error{kUnsupported} naming every refused file, with what to do.
SortedFiles files_to_carry(const Checkpoint& checkpoint);

}  // namespace coppice::io
