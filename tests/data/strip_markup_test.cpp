#include "coppice/data/strip_markup.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace coppice::data {
namespace {

using ::testing::ElementsAre;

TEST(StripPod, KeepsHeadingsParagraphsAndExamples) {
  EXPECT_EQ(strip_pod("=head1 NAME\n\nperlx - one\ntwo\n\n  my $x = 1;\n\n    more;\n\n=over 4\n\n=item "
                      "*\n\nPoint\n\n=item B<Tag>\n\n=back\n\n=cut\n\nsub x {}\n\n=pod\n\nLast\n"),
            "NAME\n\nperlx - one two\n\n  my $x = 1;\n\n    more;\n\nPoint\n\nTag\n\nLast\n");
}

TEST(StripPod, ResolvesFormattingCodes) {
  EXPECT_EQ(strip_pod("A B<bold I<both>> C<< a->b > c >> E<lt>tagE<gt> L<text|perlfunc/open> L<perlre> X<index>Z<>S<no "
                      "break> F<file>."),
            "A bold both a->b > c <tag> text perlre no break file.\n");
}

/// A text with markup that does not end, and what is left of it.
struct Unfinished {
  const char *text, *plain;
};

TEST(StripPod, TakesCodesThatDoNotEndToTheEnd) {
  const Unfinished cases[] = {{"One B<", "One\n"},
                              {"One B<two", "One two\n"},
                              {"One C<< two", "One two\n"},
                              {"One L<two|three", "One two\n"},
                              {"One E<lt", "One <\n"},
                              {"One E<", "One\n"},
                              {"B<I<C<deep", "deep\n"},
                              {"=begin html\n\nOne", ""},
                              {"=", ""},
                              {"A<>B<>One", "One\n"}};
  for (const auto& [text, plain] : cases) EXPECT_EQ(strip_pod(text), plain) << text;
}

TEST(StripPod, LeavesBlocksForOtherFormattersOut) {
  EXPECT_EQ(strip_pod("=begin html\n\n<b>x</b>\n\n=end html\n\n=for comment y\n\n=encoding utf8\n\nText\n"), "Text\n");
}

TEST(StripRoff, KeepsProseAndDropsMacrosAndEscapes) {
  EXPECT_EQ(strip_roff(".\\\" comment\n.TH LS 1\n.SH BESCHREIBUNG\n.PP\nGibt \\fBDATEI\\fP aus\\-\nund \\(bu "
                       "\\[aq]mehr\\[aq].\n.TP\n\\fB\\-a\\fP, "
                       "\\fB\\-\\-all\\fP\nalles zeigen\n.B fett und\n.BR ls (1)\n.I \"zwei Worte\"\n"),
            "BESCHREIBUNG\n\nGibt DATEI aus- und \xe2\x80\xa2 'mehr'.\n\n-a, --all: alles zeigen fett und ls(1) zwei "
            "Worte\n");
}

TEST(StripRoff, DropsBoilerplateTablesExamplesAndConditionals) {
  const auto text = strip_roff(
      ".SH NOM\nls - lister\n.SH DESCRIPTION\nAvant.\n.TS\nl l.\ncellule\n.TE\n.nf\ncode();\n.fi\n.ie n "
      "\\{\\\nn\\c\n.\\}\n.el \\{\\\nt\n.\\}\n"
      ".if t secret\nApr\xc3\xa8s.\n.de XX\nmacro\n..\n.SH TRADUCTION\nLa traduction\n.MT x@y\n.ME .\n.SH NOTES\nFin "
      "\\s-1petit\\s0 \\h'+1'x\\&.\n");
  EXPECT_EQ(text, "DESCRIPTION\n\nAvant.\n\nApr\xc3\xa8s.\n\nNOTES\n\nFin petit x.\n");
}

TEST(StripRoff, GivesNothingForOtherMacros) { EXPECT_EQ(strip_roff(".Dd May\n.Dt X 1\n.Sh NAME\n.Nm x\n"), ""); }

TEST(StripRoff, DropsEscapesAndMacrosThatDoNotEnd) {
  const Unfinished cases[] = {
      {"One \\", "One\n"},   {"One \\f", "One\n"},        {"One \\f[", "One\n"},        {"One \\f[bold", "One\n"},
      {"One \\(", "One\n"},  {"One \\(b", "One\n"},       {"One \\[aq", "One '\n"},     {"One \\h'+1", "One\n"},
      {"One \\*", "One\n"},  {"One\n.", "One\n"},         {"One\n'", "One\n"},          {".B \"one two", "one two\n"},
      {".B one\\", "one\n"}, {"One\n.TS\ncell", "One\n"}, {"One\n.if \\{two", "One\n"}, {".de XX\nmacro\nOne", ""}};
  for (const auto& [text, plain] : cases) EXPECT_EQ(strip_roff(text), plain) << text;
}

TEST(SplitDictionary, KeepsHeadWordClassAndDefinitions) {
  const auto entries = split_dictionary(
      "\n\n00-database-info\n   This is about \\ the database.\n\n===\n\n"
      "Lark \\Lark\\ (l[aum]rk), n. [Perh fr. AS. l[=a]c play. Cf.\n   {Lake}, v. i.]\n   A frolic; a jolly time. "
      "[Colloq.] --Dickens.\n   [1913 Webster]\n\n"
      "Laridae \\Laridae\\ prop. n.\n   The natural family {Larid[ae]} of birds;\n   the gull family.\n\n   Syn: "
      "family {Laridae}.\n        [WordNet 1.5]\n");
  EXPECT_THAT(
      entries,
      ElementsAre(
          "Lark, n. A frolic; a jolly time. --Dickens.\n",
          "Laridae prop. n. The natural family Larid\xc3\xa6 of birds; the gull family.\n\nSyn: family Laridae.\n"));
}

TEST(SplitDictionary, SurvivesBracketsThatDoNotEnd) {
  EXPECT_THAT(split_dictionary("\nA \\A\\ (x, n. [y\n   z\n"), ElementsAre("A (x, n.\n"));
  EXPECT_TRUE(split_dictionary("").empty());
}

TEST(StripCode, DropsLeadingCommentsOnly) {
  EXPECT_EQ(strip_code("/* licence\n */\n\n// more\nint x; /* kept */\r\n"), "int x; /* kept */\n");
  EXPECT_EQ(strip_code("#! /usr/bin/python\n# Copyright\n#\n\nimport os  # kept\n"), "import os  # kept\n");
  EXPECT_EQ(strip_code("#ifndef X\n#define X\n"), "#ifndef X\n#define X\n");
  EXPECT_EQ(strip_code("/* never ends"), "");
}

}  // namespace
}  // namespace coppice::data
