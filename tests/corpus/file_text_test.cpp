#include "coppice/corpus/file_text.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "coppice/io/atomic_file.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::corpus {
namespace {

using coppice::testing::expect_error;
using coppice::testing::TempDir;

TEST(PodText, KeepsHeadingsParagraphsAndExamples) {
  const TempDir dir;
  io::write_file_atomically(dir / "a.pod",
                            "=encoding utf8\n\n=head1 NAME\n\nperlx - one\nB<two> \xc3\xa9\n\n  my $x = 1;\n\n=cut\n\n"
                            "sub x {}\n\n=begin html\n\n<b>x</b>\n\n=end html\n\n=pod\n\nNever ends I<deep\n");
  const std::string text = pod_text(dir / "a.pod");
  EXPECT_EQ(text, "NAME\nperlx - one two \xc3\xa9\n\n  my $x = 1;\n\nNever ends *deep*\n\n");
}

TEST(ManualText, KeepsProseOnSingleLines) {
  const TempDir dir;
  io::write_file_atomically(dir / "ls.1",
                            ".\\\" comment\n.TH LS 1 \"heute\" \"Fuss\" \"Kopf\"\n.SH BESCHREIBUNG\n.PP\nGibt "
                            "\\fBDATEI\\fP und \\(bu\n\\[:a]ndert \\fI\xc3\xb6"
                            "fter\\fP.\n.TP\n\\fB\\-a\\fP\nalles\n");
  EXPECT_EQ(manual_text(dir / "ls.1"),
            "BESCHREIBUNG\nGibt DATEI und \xe2\x80\xa2 \xc3\xa4ndert \xc3\xb6"
            "fter.\n\n-a alles\n");
}

TEST(ManualText, SaysWhichPackageHasTheProgram) {
  const TempDir dir;
  io::write_file_atomically(dir / "a.1", ".TH A 1\n");
  const std::string path = std::getenv("PATH");
  ::setenv("PATH", dir.path().c_str(), 1);
  expect_error(ErrorCode::kIo, {"mandoc", "apt-get install mandoc"}, [&] { manual_text(dir / "a.1"); });
  expect_error(ErrorCode::kIo, {"pod2text", "apt-get install perl"}, [&] { pod_text(dir / "a.1"); });
  ::setenv("PATH", path.c_str(), 1);
}

TEST(WithoutLayout, TakesWhatDoesNotEnd) {
  EXPECT_EQ(detail::without_layout(""), "");
  EXPECT_EQ(detail::without_layout("\b\b"), "");
  EXPECT_EQ(detail::without_layout("header"), "");
  EXPECT_EQ(detail::without_layout("header\n\n\n"), "");
  EXPECT_EQ(detail::without_layout("header\nfooter"), "");
  EXPECT_EQ(detail::without_layout(
                "h\n\n\n  a  b\n \xe2\x94\x8c\xe2\x94\x80\xe2\x94\x80\n\n\n\nN\bN_\b\xc3\xa9\xc3\xa9\b\n\nf\n"),
            "a b\n\nN\xc3\xa9\n");
}

TEST(WithoutLeadingComment, DropsLeadingCommentsOnly) {
  using detail::without_leading_comment;
  EXPECT_EQ(without_leading_comment("/* licence\n */\n\n// more\nint x; /* kept */\r\n"), "int x; /* kept */\n");
  EXPECT_EQ(without_leading_comment("#! /usr/bin/python\n# Copyright\n#\n\nimport os  # kept\n"),
            "import os  # kept\n");
  EXPECT_EQ(without_leading_comment("#ifndef X\n#define X\n"), "#ifndef X\n#define X\n");
  EXPECT_EQ(without_leading_comment("/* never ends"), "");
}

}  // namespace
}  // namespace coppice::corpus
