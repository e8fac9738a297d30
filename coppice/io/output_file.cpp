#include "coppice/io/output_file.h"

#include "coppice/base/error.h"
#include "coppice/base/file.h"
#include "coppice/base/text.h"

namespace coppice::io {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kAdvice = " (choose another name, or remove it first)";

[[noreturn]] void refuse(const fs::path& output, std::string_view problem) {
  throw Error(ErrorCode::kUsage, cat("out: ", output, ": ", problem));
}

bool is_kind(const fs::path& path, const OutputKind& kind) {
  std::error_code none;
  if (fs::file_size(path, none) == 0 && !none) return true;
  try {
    return kind.is(path);
  } catch (const Error&) {
    return false;
  }
}

bool lies_in(const fs::path& file, const fs::path& directory) {
  const auto relative = file.lexically_relative(directory);
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

void check_output_file(const fs::path& output, const OutputKind& kind, std::span<const fs::path> inputs) {
  std::error_code none;
  const fs::path real = fs::weakly_canonical(fs::absolute(output), none);
  for (const auto& input : inputs) {
    const fs::path from = fs::weakly_canonical(fs::absolute(input), none);
    if (real == from) refuse(output, "is an input of this command and would be overwritten (choose another name)");
    if (fs::exists(from / "config.json", none) && lies_in(real, from)) {
      refuse(output, cat("lies inside the model ", input, "; wanted a path outside of it (choose another name)"));
    }
  }
  const auto status = fs::status(output, none);
  if (!fs::exists(status)) return;
  if (!fs::is_regular_file(status)) refuse(output, cat("exists and is not a file", kAdvice));
  if (!is_kind(output, kind))
    refuse(output, cat("exists and is not a file of ", kind.name, ", the only kind that would be replaced", kAdvice));
}

std::string read_start(const fs::path& path, size_t max_bytes) {
  const Descriptor file = open_to_read(path);
  std::string out(max_bytes, '\0');
  size_t size = 0;
  while (size < max_bytes) {
    const size_t n = read_some(file, std::as_writable_bytes(std::span(out)).subspan(size), path);
    if (n == 0) break;
    size += n;
  }
  out.resize(size);
  return out;
}

}  // namespace coppice::io
