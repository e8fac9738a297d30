#pragma once

// What becomes of the files that lie in model directories when the model is grown, shrunk or converted.

#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace coppice::io {

class Checkpoint;

enum class FileDecision {
  kRewritten,  ///< written anew for the new model
  kCarried,    ///< copied byte for byte
  kChecked,    ///< copied byte for byte, unless its text names experts by number or counts them: then left out
  kLeftOut,    ///< not copied, and said so
  kRefused,    ///< the work is refused until the user has moved it away
};

/// "rewritten", "carried", "carried if it counts no experts", "left out", "refused".
std::string_view decision_name(FileDecision decision);

/// One kind of file.
struct FileRule {
  std::string_view kind;
  /// Patterns, separated by spaces; `*` stands for any characters but '/'. One that ends in '/' is a folder with all in
  /// it, else a file; one that begins with '/' lies at the top of the directory, else anywhere below.
  std::string_view patterns;
  FileDecision decision;
  std::string_view reason;  ///< why, and what to do; empty where there is nothing to say
};

/// The table. The outermost folder that a row fits decides for all in it; else the first row that fits the file, and
/// the last one fits every file.
std::span<const FileRule> file_rules();
/// The rule for a folder as a whole; none where each of its files has its own.
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

/// "original/ (weights in another format)" ..., one line each.
std::vector<std::string> texts_of(std::span<const JudgedFile> files);

}  // namespace coppice::io
