#include "coppice/output/write_output.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/io/block_file.h"

namespace coppice::output {
namespace {

using Clock = std::chrono::steady_clock;

/// Threads  besides the computing ones: direct writes wait for the disk, and two threads keep it busy.
constexpr size_t kMovers = 2;

/// The files being written. Each is open only from its first unit to its last, so that few are open at a time.
class OpenFiles {
 public:
  OpenFiles(const std::filesystem::path& directory, const OutputLayout& layout, const std::vector<size_t>& units)
      : directory_(directory), layout_(layout), open_(layout.files().size()), left_(layout.files().size()) {
    for (const size_t unit : units) {
      for (const UnitPlace& place : layout.units()[unit].places) ++left_[place.file];
    }
  }

  std::shared_ptr<io::BlockFile> at(size_t file) {
    const std::lock_guard lock(mutex_);
    if (!open_[file]) {
      const OutputFile& planned = layout_.files()[file];
      open_[file] = std::make_shared<io::BlockFile>(directory_ / planned.path, planned.layout.file_bytes);
    }
    return open_[file];
  }

  /// Must be called when a place in the file has been written.
  void end(size_t file) {
    const std::lock_guard lock(mutex_);
    if (--left_[file] == 0) open_[file].reset();
  }

 private:
  std::filesystem::path directory_;
  const OutputLayout& layout_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<io::BlockFile>> open_;
  std::vector<size_t> left_;  // places
};

/// Records finished units: first flushes their bytes to the disk, then the journal.
class Recorder {
 public:
  explicit Recorder(io::PartialDirectory& out) : out_(out) {}

  void add(size_t unit, uint64_t bytes, const std::map<size_t, std::shared_ptr<io::BlockFile>>& files) {
    std::unique_lock lock(mutex_);
    units_.push_back(unit);
    bytes_ += bytes;
    files_.insert(files.begin(), files.end());
    if (busy_ || (bytes_ < kOftenBytes && Clock::now() - last_ < kOften)) return;
    write(lock);
  }

  void flush() {
    std::unique_lock lock(mutex_);
    write(lock);
  }

 private:
  static constexpr uint64_t kOftenBytes = uint64_t{256} << 20;
  static constexpr auto kOften = std::chrono::milliseconds(200);

  void write(std::unique_lock<std::mutex>& lock) {
    busy_ = true;
    const auto units = std::exchange(units_, {});
    const auto files = std::exchange(files_, {});
    bytes_ = 0;
    lock.unlock();
    try {
      for (const auto& [index, file] : files) file->sync();
      out_.record(units);
    } catch (...) {
      lock.lock();
      busy_ = false;
      throw;
    }
    lock.lock();
    last_ = Clock::now();
    busy_ = false;
  }

  io::PartialDirectory& out_;
  std::mutex mutex_;
  std::vector<uint64_t> units_;
  std::map<size_t, std::shared_ptr<io::BlockFile>> files_;
  uint64_t bytes_ = 0;
  bool busy_ = false;
  Clock::time_point last_ = Clock::now();
};

/// Hands out units in order, but copies and computations in parallel, because copies wait for the disk and computations
/// for the processor. Neither gets far ahead, so that the bytes that both read are still in memory.
class UnitQueue {
 public:
  enum Lane { kCopies, kComputations };

  UnitQueue(const OutputLayout& layout, const std::vector<size_t>& units) {
    uint64_t position = 0;
    for (const size_t unit : units) {
      lanes_[layout.units()[unit].computes() ? kComputations : kCopies].push_back({unit, position});
      position += layout.units()[unit].bytes_written();
    }
  }

  std::optional<size_t> next(Lane wanted) {
    const std::lock_guard lock(mutex_);
    const Lane other = wanted == kCopies ? kComputations : kCopies;
    if (ended(wanted) && ended(other)) return std::nullopt;
    const bool swap = ended(wanted) || (!ended(other) && front(wanted).position > front(other).position + kAheadBytes);
    const Lane lane = swap ? other : wanted;
    return lanes_[lane][at_[lane]++].unit;
  }

 private:
  static constexpr uint64_t kAheadBytes = uint64_t{1} << 30;
  struct Entry {
    size_t unit;
    uint64_t position;
  };

  bool ended(Lane lane) const { return at_[lane] == lanes_[lane].size(); }
  const Entry& front(Lane lane) const { return lanes_[lane][at_[lane]]; }

  std::mutex mutex_;
  std::array<std::vector<Entry>, 2> lanes_;
  std::array<size_t, 2> at_{};
};

/// Limits the number of computations at a time and the bytes of their output, but always allows one.
class ComputeGate {
 public:
  explicit ComputeGate(size_t threads) : threads_(threads) {}

  class Pass {
   public:
    Pass(ComputeGate& gate, uint64_t bytes) : gate_(gate), bytes_(bytes) {
      std::unique_lock lock(gate_.mutex_);
      gate_.free_.wait(lock, [&] {
        return gate_.inside_ == 0 || (gate_.inside_ < gate_.threads_ && gate_.bytes_ + bytes_ <= kBytes);
      });
      ++gate_.inside_;
      gate_.bytes_ += bytes_;
    }
    ~Pass() {
      {
        const std::lock_guard lock(gate_.mutex_);
        --gate_.inside_;
        gate_.bytes_ -= bytes_;
      }
      gate_.free_.notify_all();
    }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

   private:
    ComputeGate& gate_;
    uint64_t bytes_;
  };

 private:
  static constexpr uint64_t kBytes = uint64_t{32} << 20;

  size_t threads_;
  std::mutex mutex_;
  std::condition_variable free_;
  size_t inside_ = 0;
  uint64_t bytes_ = 0;
};

/// The data that the threads share.
struct Work {
  const OutputLayout& layout;
  OpenFiles& files;
  Recorder& recorder;
  ComputeGate& gate;
  Progress& progress;
};

bool clone(const OutputUnit& unit, OpenFiles& files) {
  const UnitSegment& segment = unit.segments.front();
  if (unit.segments.size() != 1 || segment.piece->file == nullptr) return false;
  return std::ranges::all_of(unit.places, [&](const UnitPlace& place) {
    return files.at(place.file)
        ->clone(place.offset, *segment.piece->file, segment.piece->offset + segment.skip, unit.bytes);
  });
}

void fill(const OutputUnit& unit, std::span<std::byte> out) {
  for (const UnitSegment& segment : unit.segments) {
    const auto bytes = out.first(segment.bytes);
    out = out.subspan(segment.bytes);
    segment.piece->fill(segment.skip, bytes);
  }
}

void write(const OutputUnit& unit, std::span<const std::byte> bytes, OpenFiles& files) {
  for (const UnitPlace& place : unit.places) files.at(place.file)->write(place.offset, bytes);
}

void do_unit(size_t index, std::span<std::byte> window, Work work) {
  const OutputUnit& unit = work.layout.units()[index];
  const uint64_t in_block = unit.places.front().offset % io::kBlockBytes;
  std::map<size_t, std::shared_ptr<io::BlockFile>> touched;
  for (const UnitPlace& place : unit.places) touched.emplace(place.file, work.files.at(place.file));

  if (unit.computes()) {
    // A large piece stays counted until it is written, because the gate limits the buffers.
    std::optional<io::BlockBuffer> own;
    std::optional<ComputeGate::Pass> pass(std::in_place, work.gate, unit.bytes);
    if (in_block + unit.bytes > window.size()) own.emplace(in_block + unit.bytes);
    const auto bytes = (own ? own->bytes() : window).subspan(in_block, unit.bytes);
    fill(unit, bytes);
    if (!own) pass.reset();
    write(unit, bytes, work.files);
  } else if (!clone(unit, work.files)) {
    const auto bytes = window.subspan(in_block, unit.bytes);
    fill(unit, bytes);
    write(unit, bytes, work.files);
  }
  work.recorder.add(index, unit.bytes_written(), touched);
  for (const UnitPlace& place : unit.places) work.files.end(place.file);
  work.progress.advance(unit.bytes_written());
}

/// Makes every file with its header. Returns which ones had bytes of an earlier run.
std::vector<bool> prepare_files(io::PartialDirectory& out, const OutputLayout& layout) {
  std::vector<bool> kept;
  out.alone([&] {
    for (const OutputFile& file : layout.files()) {
      const auto path = out.path() / file.path;
      std::error_code failure;
      std::filesystem::create_directories(path.parent_path(), failure);
      if (failure) {
        throw Error(ErrorCode::kIo, cat(path.parent_path(), ": cannot make the directory: ", failure.message()));
      }
      kept.push_back(io::BlockFile::would_keep(path, file.layout.file_bytes));
      io::BlockFile written(path, file.layout.file_bytes);
      uint64_t at = 0;
      file.layout.each_header_piece([&](std::string_view piece) {
        written.write(at, std::as_bytes(std::span(piece)));
        at += piece.size();
      });
    }
  });
  return kept;
}

}  // namespace

WrittenBytes write_output(io::PartialDirectory& out, const OutputLayout& layout, io::Part part, size_t threads,
                          std::string_view verb) {
  const std::vector<bool> kept = prepare_files(out, layout);
  std::vector<bool> done(layout.units().size());
  for (const uint64_t unit : out.done()) {
    if (unit >= done.size()) continue;
    done[unit] = std::ranges::all_of(layout.units()[unit].places, [&](const UnitPlace& p) { return kept[p.file]; });
  }
  WrittenBytes bytes;
  std::vector<size_t> left;
  for (const size_t unit : layout.units_of(part)) {
    (done[unit] ? bytes.resumed : bytes.written) += layout.units()[unit].bytes_written();
    if (!done[unit]) left.push_back(unit);
  }

  Progress progress(std::string(verb), bytes.written, ProgressUnit::kBytes);
  OpenFiles files(out.path(), layout, left);
  Recorder recorder(out);
  UnitQueue queue(layout, left);
  ComputeGate gate(threads);
  std::atomic<bool> failed = false;
  const size_t workers = threads + kMovers;
  try {
    parallel_for(workers, workers, [&](size_t worker) {
      const auto lane = worker < threads ? UnitQueue::kComputations : UnitQueue::kCopies;
      std::optional<io::BlockBuffer> window;  // a worker without work needs no buffer
      try {
        while (!failed) {
          const auto unit = queue.next(lane);
          if (!unit) return;
          check_interrupt();
          if (!window) window.emplace(OutputLayout::kWindowBytes + io::kBlockBytes);
          do_unit(*unit, window->bytes(), {layout, files, recorder, gate, progress});
        }
      } catch (...) {
        failed = true;
        throw;
      }
    });
    recorder.flush();
  } catch (...) {
    try {
      recorder.flush();
    } catch (const Error&) {  // NOLINT(bugprone-empty-catch): the first error is reported
    }
    throw;
  }
  return bytes;
}

}  // namespace coppice::output
