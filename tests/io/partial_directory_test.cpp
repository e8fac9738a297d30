#include "coppice/io/partial_directory.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <map>

#include "coppice/base/text.h"
#include "coppice/io/atomic_file.h"
#include "tests/testing/errors.h"
#include "tests/testing/safetensors_files.h"
#include "tests/testing/temp_dir.h"

namespace coppice::io {
namespace {

namespace fs = std::filesystem;
using testing::expect_error;
using testing::TempDir;
using testing::write_text;

using Units = std::vector<uint64_t>;

const WorkIdentity kPlan{.plan = "plan", .source = "source"};
constexpr Part kWhole{1, 1};
const auto kNothing = [] {};

size_t entries(const fs::path& directory) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(directory), fs::directory_iterator()));
}

/// Runs `act` in a process that then dies without tidying up; true if `act` threw nothing.
bool in_killed_process(const std::function<void()>& act) {
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      act();
      ::_exit(0);
    } catch (...) {
      ::_exit(1);
    }
  }
  int status = 1;
  ::waitpid(child, &status, 0);
  return status == 0;
}

/// A run that did units 3 and 5 and was killed.
void leave_partial_work(const fs::path& target, Part part = kWhole, const WorkIdentity& identity = kPlan) {
  ASSERT_TRUE(in_killed_process([&] {
    auto* out = new PartialDirectory(target, part, true, identity);
    write_text(out->path() / "a", "x");
    out->record(Units{3, 5});
    out->record(Units{});
  }));
}

TEST(PartFromText, TakesPartsAndNothingElse) {
  EXPECT_EQ(Part::from_text("2/3"), (Part{2, 3}));
  EXPECT_EQ((Part{2, 3}).to_text(), "2/3");
  for (const char* text : {"", "1", "/", "1/", "/2", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "1/2 ", "a/b", "1/100000"}) {
    SCOPED_TRACE(text);
    expect_error(ErrorCode::kUsage, {"is not a part"}, [&] { (void)Part::from_text(text); });
  }
}

TEST(PartialDirectory, AppearsWholeWhenItIsSealed) {
  const TempDir dir;
  PartialDirectory out(dir / "out/", kWhole, false, kPlan);
  write_text(out.path() / "sub" / "a", "x");
  EXPECT_FALSE(fs::exists(dir / "out"));
  EXPECT_TRUE(out.seal([&] { write_text(out.path() / "b", "y"); }).empty());
  EXPECT_EQ(read_file(dir / "out" / "sub" / "a"), "x");
  EXPECT_EQ(read_file(dir / "out" / "b"), "y");
  EXPECT_EQ(entries(dir / "out"), 2u);
  EXPECT_EQ(entries(dir.path()), 1u);
}

TEST(PartialDirectory, LeavesNothingUnlessItMayBeContinued) {
  const TempDir dir;
  {
    const PartialDirectory out(dir / "out", kWhole, false, kPlan);
  }
  EXPECT_TRUE(fs::is_empty(dir.path()));
  {
    const PartialDirectory out(dir / "out", kWhole, true, kPlan);
  }
  EXPECT_TRUE(fs::exists(dir / ".out.tmp-work"));
  {
    const PartialDirectory out(dir / "out", kWhole, false, kPlan);
  }
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

TEST(PartialDirectory, ContinuesWhatAKilledProcessDid) {
  const TempDir dir;
  leave_partial_work(dir / "out");
  {
    const PartialDirectory out(dir / "out", kWhole, true, kPlan);
    EXPECT_EQ(out.done(), (Units{3, 5}));
    EXPECT_EQ(read_file(out.path() / "a"), "x");
  }
  PartialDirectory out(dir / "out", kWhole, true, kPlan);
  out.record(Units{4});
  out.seal(kNothing);
  EXPECT_EQ(read_file(dir / "out" / "a"), "x");
}

TEST(PartialDirectory, BeginsAnewWhereNotAskedToContinue) {
  const TempDir dir;
  leave_partial_work(dir / "out");
  const PartialDirectory out(dir / "out", kWhole, false, kPlan);
  EXPECT_TRUE(out.done().empty());
  EXPECT_TRUE(fs::is_empty(out.path()));
}

TEST(PartialDirectory, RefusesToContinueOtherWork) {
  const TempDir dir;
  leave_partial_work(dir / "out");
  const auto open = [&](Part part, const WorkIdentity& identity) {
    return [=, &dir] { const PartialDirectory out(dir / "out", part, true, identity); };
  };
  expect_error(ErrorCode::kUsage, {"out", "other settings"}, open(kWhole, {"another plan", "source"}));
  expect_error(ErrorCode::kFormat, {"out", "source has changed"}, open(kWhole, {"plan", "another source"}));
  expect_error(ErrorCode::kUsage, {"out", "begun in 1 part; wanted 2"}, open({1, 2}, kPlan));
  const PartialDirectory out(dir / "out", kWhole, true, kPlan);  // and all is there still
  EXPECT_EQ(out.done(), (Units{3, 5}));
}

// Whatever byte the machine stopped at: what is told as done was recorded as done.
TEST(PartialDirectory, TakesAJournalThatWasCutAnywhere) {
  const TempDir dir;
  leave_partial_work(dir / "out");
  const auto journal = dir / ".out.tmp-work" / "journals" / "part-00001-of-00001";
  const auto text = read_file(journal);
  const auto header_end = text.find('\n');
  for (size_t length = 0; length <= text.size(); ++length) {
    std::ofstream(journal, std::ios::binary | std::ios::trunc) << text.substr(0, length);
    PartialDirectory out(dir / "out", kWhole, true, kPlan);
    EXPECT_EQ(out.done(), length == text.size() ? Units({3, 5}) : Units()) << "cut at byte " << length;
    out.record(Units{7});
    EXPECT_GT(fs::file_size(journal), header_end);
  }
  for (const char* end : {"done x\n", "done 1 \n", "done 1  2\n", "done 99999999999999999999\n", "\n", "compl\n"}) {
    std::ofstream(journal, std::ios::binary | std::ios::trunc) << text << end << "done 9\n";
    const PartialDirectory out(dir / "out", kWhole, true, kPlan);
    EXPECT_EQ(out.done(), (Units{3, 5})) << end;
  }
}

TEST(PartialDirectory, LeavesLivingProcessesAlone) {
  const TempDir dir;
  PartialDirectory first(dir / "out", kWhole, false, kPlan);
  write_text(first.path() / "a", "x");
  for (const bool resume : {false, true}) {
    expect_error(ErrorCode::kIo, {"out", "another process is writing it"},
                 [&] { const PartialDirectory second(dir / "out", kWhole, resume, kPlan); });
  }
  expect_error(ErrorCode::kIo, {"another process"},
               [&] { const PartialDirectory part(dir / "out", {1, 2}, false, kPlan); });
  EXPECT_EQ(read_file(first.path() / "a"), "x");
}

TEST(PartialDirectory, RefusesATargetThatExists) {
  const TempDir dir;
  fs::create_symlink("nowhere", dir / "out");
  expect_error(ErrorCode::kUsage, {"out", "exists"},
               [&] { const PartialDirectory out(dir / "out", kWhole, true, kPlan); });
  expect_error(ErrorCode::kIo, {"none"},
               [&] { const PartialDirectory out(dir / "none" / "out", kWhole, true, kPlan); });
}

TEST(PartialDirectory, KeepsItsWorkIfTheTargetAppearedMeanwhile) {
  const TempDir dir;
  {
    PartialDirectory out(dir / "out", kWhole, false, kPlan);
    write_text(out.path() / "a", "x");
    fs::create_directory(dir / "out");
    expect_error(ErrorCode::kIo, {"out", "the finished output stays at"}, [&] { out.seal(kNothing); });
  }
  EXPECT_TRUE(fs::is_empty(dir / "out"));
  EXPECT_EQ(read_file(dir / ".out.tmp-work" / "model" / "a"), "x");
}

/// What lies below, with the text of files, so that nothing can change unseen.
std::map<std::string, std::string> contents(const fs::path& directory) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    out[entry.path().lexically_relative(directory).string()] = entry.is_regular_file() ? read_file(entry.path()) : "";
  }
  return out;
}

// The name can be foreseen, so it can be somebody's own directory, or a link to one.
TEST(PartialDirectory, LeavesForeignDirectoriesOfItsNameAlone) {
  const auto journal = fs::path("journals") / "part-00001-of-00001";
  const std::map<std::string, std::vector<fs::path>> foreign = {
      {"has files that coppice did not write", {"model/thesis.txt", "journals/diary.txt"}},
      {"has files that coppice did not write", {"notes.txt"}},
      {"holds 'notes.txt'", {"lock", "notes.txt"}},
      {"no journal of coppice", {"lock", "model/thesis.txt"}},
      {"has files but no journal", {"lock", "alone", journal, "model/thesis.txt"}}};
  for (const auto& [reason, files] : foreign) {
    for (const bool linked : {false, true}) {
      SCOPED_TRACE(cat(reason, linked ? " behind a link" : ""));
      const TempDir dir;
      const auto work = dir / ".out.tmp-work", real = linked ? dir / "proj" : work;
      for (const auto& file : files) write_text(real / file, file == "lock" || file == "alone" ? "" : "precious");
      if (linked) fs::create_directory_symlink("proj", work);
      const auto before = contents(real);
      for (const bool resume : {false, true}) {
        for (const Part part : {kWhole, Part{1, 2}}) {
          expect_error(ErrorCode::kUsage, {".out.tmp-work", linked ? "symbolic link" : reason.c_str()},
                       [&] { const PartialDirectory out(dir / "out", part, resume, kPlan); });
        }
      }
      EXPECT_EQ(contents(real), before);
    }
  }
}

TEST(LeftoversOf, AreRemovedIfNobodyHoldsThem) {
  const TempDir dir;
  leave_partial_work(dir / "out");
  write_text(dir / ".mine.tmp-work" / "notes.txt", "precious");
  EXPECT_EQ(leftovers(dir.path()), (std::vector<std::string>{"mine", "out"}));
  for (const char* name : {"out", "mine", "absent"}) remove_leftovers(dir / name);
  EXPECT_EQ(leftovers(dir.path()), std::vector<std::string>{"mine"});
  EXPECT_EQ(read_file(dir / ".mine.tmp-work" / "notes.txt"), "precious");
  const PartialDirectory held(dir / "held", kWhole, true, kPlan);
  remove_leftovers(dir / "held");
  EXPECT_TRUE(fs::exists(held.path()));
}

TEST(PartialDirectory, RefusesWhatIsNoDirectoryOrHasNoFilesForLocks) {
  const TempDir dir;
  const auto open = [&] { const PartialDirectory out(dir / "out", kWhole, false, kPlan); };
  write_text(dir / ".out.tmp-work", "a file");
  expect_error(ErrorCode::kUsage, {".out.tmp-work"}, open);
  fs::remove(dir / ".out.tmp-work");
  fs::create_directory(dir / ".out.tmp-work");
  ASSERT_EQ(::mkfifo((dir / ".out.tmp-work" / "lock").c_str(), 0600), 0);
  expect_error(ErrorCode::kUsage, {"lock that is not a file"}, open);
  fs::remove(dir / ".out.tmp-work" / "lock");
  write_text(dir / "victim", "precious");
  fs::create_symlink(dir / "victim", dir / ".out.tmp-work" / "lock");
  expect_error(ErrorCode::kIo, {"lock"}, open);
  fs::remove(dir / ".out.tmp-work" / "lock");
  write_text(dir / ".out.tmp-work" / "lock", "of another program");
  expect_error(ErrorCode::kUsage, {"a lock of another program"}, open);
  EXPECT_EQ(read_file(dir / ".out.tmp-work" / "lock"), "of another program");
  EXPECT_EQ(read_file(dir / "victim"), "precious");
}

// 0.1.0 marked nothing; its journals show whose the directory is.
TEST(PartialDirectory, ContinuesAndClearsWhatTheVersionBeforeLeft) {
  for (const bool resume : {true, false}) {
    const TempDir dir;
    leave_partial_work(dir / "out");
    fs::resize_file(dir / ".out.tmp-work" / "lock", 0);
    const PartialDirectory out(dir / "out", kWhole, resume, kPlan);
    EXPECT_EQ(out.done(), resume ? Units({3, 5}) : Units());
  }
}

TEST(PartialDirectory, FollowsNoLinkThatItRemoves) {
  const TempDir dir;
  leave_partial_work(dir / "out");
  write_text(dir / "elsewhere" / "thesis.txt", "precious");
  fs::create_directory_symlink(dir / "elsewhere", dir / ".out.tmp-work" / "model" / "sub");
  {
    const PartialDirectory out(dir / "out", kWhole, false, kPlan);
    EXPECT_TRUE(fs::is_empty(out.path()));
  }
  EXPECT_EQ(read_file(dir / "elsewhere" / "thesis.txt"), "precious");
}

TEST(PartialDirectoryParts, AreSealedByTheLastOne) {
  const TempDir dir;
  PartialDirectory two(dir / "out", {2, 3}, false, kPlan);
  write_text(two.path() / "2", "x");
  {
    PartialDirectory one(dir / "out", {1, 3}, false, kPlan);
    write_text(one.path() / "1", "x");
    EXPECT_EQ(one.seal([] { ADD_FAILURE() << "sealed with two parts missing"; }), (std::vector<uint32_t>{2, 3}));
  }
  EXPECT_EQ(two.seal([] { ADD_FAILURE() << "sealed with one part missing"; }), std::vector<uint32_t>{3});
  PartialDirectory three(dir / "out", {3, 3}, false, kPlan);
  write_text(three.path() / "3", "x");
  int finished = 0;
  EXPECT_TRUE(three.seal([&] { ++finished; }).empty());
  EXPECT_EQ(finished, 1);
  EXPECT_EQ(entries(dir / "out"), 3u);
  // A part that waited while another one sealed: nothing is left to do.
  EXPECT_TRUE(two.seal([] { ADD_FAILURE() << "sealed twice"; }).empty());
  EXPECT_EQ(entries(dir.path()), 1u);
}

TEST(PartialDirectoryParts, MayDieAndBeStartedAgain) {
  const TempDir dir;
  leave_partial_work(dir / "out", {1, 2});
  {
    PartialDirectory two(dir / "out", {2, 2}, false, {.plan = "plan", .source = "the same files, copied"});
    EXPECT_EQ(two.seal(kNothing), std::vector<uint32_t>{1});
  }
  PartialDirectory one(dir / "out", {1, 2}, false, kPlan);
  EXPECT_EQ(one.done(), (Units{3, 5}));
  EXPECT_TRUE(one.seal(kNothing).empty());
  EXPECT_EQ(read_file(dir / "out" / "a"), "x");
}

// Killed after the rename: the journals say that all is done, and the files have gone with the output.
TEST(PartialDirectoryParts, DoNotTrustJournalsWithoutTheFiles) {
  const TempDir dir;
  leave_partial_work(dir / "out", {1, 2});
  fs::rename(dir / ".out.tmp-work" / "model", dir / "elsewhere");
  PartialDirectory two(dir / "out", {2, 2}, false, kPlan);
  EXPECT_EQ(two.seal(kNothing), std::vector<uint32_t>{1});
  const PartialDirectory one(dir / "out", {1, 2}, false, kPlan);
  EXPECT_TRUE(one.done().empty());
}

TEST(PartialDirectoryParts, MustBeOfTheSameWorkAndEachOnce) {
  const TempDir dir;
  const PartialDirectory one(dir / "out", {1, 2}, false, kPlan);
  const auto open = [&](Part part, const WorkIdentity& identity) {
    return [=, &dir] { const PartialDirectory out(dir / "out", part, false, identity); };
  };
  expect_error(ErrorCode::kIo, {"another process works on part 1/2"}, open({1, 2}, kPlan));
  expect_error(ErrorCode::kUsage, {"other settings"}, open({2, 2}, {"another plan", "source"}));
  expect_error(ErrorCode::kUsage, {"begun in 2 parts; wanted 3"}, open({2, 3}, kPlan));
  expect_error(ErrorCode::kIo, {"another process"}, open(kWhole, kPlan));
  EXPECT_NO_THROW(open({2, 2}, kPlan)());
}

}  // namespace
}  // namespace coppice::io
