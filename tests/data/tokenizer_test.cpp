#include "coppice/data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "coppice/base/json.h"
#include "coppice/base/sha256.h"
#include "coppice/data/spm_model.h"
#include "coppice/data/tokenize.h"
#include "coppice/io/atomic_file.h"
#include "tests/testing/errors.h"
#include "tests/testing/temp_dir.h"

namespace coppice::data {
namespace {

namespace fs = std::filesystem;
using coppice::testing::expect_error;
using coppice::testing::TempDir;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;

std::vector<std::string> sample_documents() {
  std::vector<std::string> out;
  for (int i = 0; i < 60; ++i) {
    out.push_back("The " + std::to_string(i * 7919) + " trees stand  in the old forest, and the river runs by.\n\n" +
                  "for (int i = 0; i < " + std::to_string(i) + "; ++i) {\n    grow(tree[i]);\n}\n" +
                  "Die gr\xc3\xbc"
                  "nen B\xc3\xa4ume stehen im alten Wald.\n");
  }
  return out;
}

class TokenizerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new TempDir;
    train_tokenizer(sample_documents(), {.vocab_size = 400}, *dir_ / "tok");
  }
  static void TearDownTestSuite() { delete dir_; }
  static fs::path trained() { return *dir_ / "tok"; }
  fs::path copy_of_trained() const {
    const fs::path to = scratch_ / "tok";
    fs::remove_all(to);
    fs::copy(trained(), to);
    return to;
  }

  TempDir scratch_;

 private:
  static inline TempDir* dir_ = nullptr;
};

std::vector<int32_t> encode(const Tokenizer& tokenizer, std::string_view text) {
  const std::vector<std::string_view> one{text};
  return tokenizer.encode(one).front();
}

/// The text of pieces as sentencepiece spells it.
std::string decode(const SpmModel& model, const std::vector<int32_t>& ids) {
  std::string out;
  for (const auto id : ids) {
    const auto& piece = model.pieces[static_cast<size_t>(id)];
    if (piece.kind == SpmModel::Kind::kByte) {
      out += static_cast<char>(std::stoi(piece.text.substr(3, 2), nullptr, 16));
      continue;
    }
    for (std::string_view text = piece.text; !text.empty();) {
      const bool space = text.starts_with(kSpaceMark);
      out += space ? ' ' : text.front();
      text.remove_prefix(space ? kSpaceMark.size() : 1);
    }
  }
  return out;
}

TEST_F(TokenizerTest, GivesBackEveryByte) {
  const auto tokenizer = open_tokenizer(trained());
  const auto model = SpmModel::parse(read_file(trained() / "tokenizer.model"), "model");
  std::vector<std::string> texts = sample_documents();
  texts.insert(texts.end(),
               {"", " ", "   leading", "trailing  \n", "a\tb\r\nc\n\n\n d", "\xf0\x9f\x98\x80 \xe6\xbc\xa2\xe5\xad\x97",
                "\x01\x02\x1f\x7f", std::string(5000, ' '), std::string(3000, 'a'), "((((((i++))))))\n\n\n\n\n"});
  for (const auto& text : texts) EXPECT_EQ(decode(model, encode(*tokenizer, text)), text);
}

TEST_F(TokenizerTest, KeepsTheIdsOfSpecialTokensInText) {
  const auto tokenizer = open_tokenizer(trained());
  EXPECT_EQ(tokenizer->vocab_size(), 400);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_THAT(encode(*tokenizer, "<unk><s></s>"), ElementsAre(0, 1, 2));
  const auto mixed = encode(*tokenizer, "tree</s> tree</");
  EXPECT_EQ(std::ranges::count(mixed, 2), 1);
  EXPECT_THAT(encode(*tokenizer, "the trees stand"), Each(Ge(3)));
}

// A document is cut where no piece can reach across; the ids must not show it.
TEST_F(TokenizerTest, IdsDoNotDependOnWhatStandsBeside) {
  const auto tokenizer = open_tokenizer(trained());
  std::string all;
  std::vector<std::string> documents = sample_documents();
  for (const auto& document : documents) all += document + "<s>";
  std::vector<int32_t> expected;
  for (const auto& document : documents) {
    const auto ids = encode(*tokenizer, document);
    expected.insert(expected.end(), ids.begin(), ids.end());
    expected.push_back(1);
  }
  EXPECT_EQ(encode(*tokenizer, all), expected);
  std::vector<std::string_view> views(documents.begin(), documents.end());
  const auto together = tokenizer->encode(views);
  for (size_t i = 0; i < documents.size(); ++i) EXPECT_EQ(together[i], encode(*tokenizer, documents[i]));
}

TEST_F(TokenizerTest, TrainsTheSameBytesTwice) {
  train_tokenizer(sample_documents(), {.vocab_size = 400}, scratch_ / "again");
  for (const auto* name : {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}) {
    EXPECT_EQ(sha256_of_file(scratch_ / "again" / name), sha256_of_file(trained() / name)) << name;
  }
  EXPECT_EQ(tokenizer_digest(trained()), sha256_of_file(trained() / "tokenizer.json"));
  EXPECT_EQ(open_tokenizer(trained())->digest(), tokenizer_digest(trained()));
  EXPECT_EQ(tokenizer_digest(scratch_.path()), "");
}

TEST_F(TokenizerTest, TrainsOnALongLineAndOnAPartOfALongText) {
  std::string line;
  for (const auto& document : sample_documents()) line += document.substr(0, document.find('\n'));
  const std::vector<std::string> one{line + line + line};
  train_tokenizer(one, {.vocab_size = 320, .max_sentence_bytes = 100, .seed = 1, .sample_bytes = 4000},
                  scratch_ / "part");
  EXPECT_EQ(open_tokenizer(scratch_ / "part")->vocab_size(), 320);
}

// Two thousand characters, each seldom: pieces of their own would leave no room for words.
TEST_F(TokenizerTest, SpellsSeldomCharactersInBytes) {
  auto documents = sample_documents();
  for (int i = 0; i < 2000; ++i) {
    const int point = 0x4e00 + i;
    const char character[] = {static_cast<char>(0xe0 | point >> 12), static_cast<char>(0x80 | (point >> 6 & 0x3f)),
                              static_cast<char>(0x80 | (point & 0x3f))};
    documents[static_cast<size_t>(i) % documents.size()] += std::string(character, 3);
  }
  train_tokenizer(documents, {.vocab_size = 400}, scratch_ / "cjk");
  const auto model = SpmModel::parse(read_file(scratch_ / "cjk/tokenizer.model"), "model");
  const auto words = std::ranges::count_if(model.pieces, [](const auto& p) {
    return p.kind == SpmModel::Kind::kNormal && p.text.size() > 1 && static_cast<unsigned char>(p.text.front()) < 0x80;
  });
  EXPECT_GT(words, 20);
  EXPECT_EQ(decode(model, encode(*open_tokenizer(scratch_ / "cjk"), documents[0])), documents[0]);
}

TEST_F(TokenizerTest, ExplainsWhyItCannotTrain) {
  const auto train = [&](const std::vector<std::string>& documents, int64_t vocab) {
    train_tokenizer(documents, {.vocab_size = vocab}, scratch_ / "new");
  };
  expect_error(ErrorCode::kUsage, {"tokenizer with 100 ids"}, [&] { train(sample_documents(), 100); });
  expect_error(ErrorCode::kUsage, {"tokenizer with 90000 ids"}, [&] { train(sample_documents(), 90000); });
  expect_error(ErrorCode::kUsage, {"no text"}, [&] { train({}, 400); });
  expect_error(ErrorCode::kFormat, {"document 0: byte 1"}, [&] { train({"a\xff"}, 400); });
  expect_error(ErrorCode::kUsage, {"has a tokenizer already"},
               [&] { train_tokenizer(sample_documents(), {}, trained()); });
  EXPECT_FALSE(fs::exists(scratch_ / "new"));
}

TEST_F(TokenizerTest, RejectsTextThatIsNotUtf8) {
  expect_error(ErrorCode::kFormat, {"document 0: byte 2"}, [&] { encode(*open_tokenizer(trained()), "ab\xff"); });
}

TEST_F(TokenizerTest, NamesADirectoryWithoutOneAndDamagedFiles) {
  expect_error(ErrorCode::kNotFound, {"neither tokenizer.json nor tokenizer.model"},
               [&] { open_tokenizer(scratch_.path()); });
  const auto dir = copy_of_trained();
  const std::string model = read_file(dir / "tokenizer.model");
  fs::remove(dir / "tokenizer.json");
  for (const std::string& bad : {std::string(), std::string("not a model"), model.substr(0, model.size() / 2),
                                 model.substr(0, model.size() - 3)}) {
    io::write_file_atomically(dir / "tokenizer.model", bad);
    try {
      open_tokenizer(dir);
      ADD_FAILURE() << "a damaged model was accepted: " << bad.size() << " bytes";
    } catch (const Error& error) {
      EXPECT_TRUE(error.code == ErrorCode::kFormat || error.code == ErrorCode::kUnsupported) << error.what();
    }
  }
}

TEST_F(TokenizerTest, UsesTheEosOfTheConfiguration) {
  const auto dir = copy_of_trained();
  Json config = Json::read(dir / "tokenizer_config.json");
  config["eos_token"] = Json::object({{"content", Json("<s>")}});
  io::write_file_atomically(dir / "tokenizer_config.json", config.dump());
  EXPECT_EQ(open_tokenizer(dir)->eos_id(), 1);
  config["eos_token"] = "<|none|>";
  io::write_file_atomically(dir / "tokenizer_config.json", config.dump());
  expect_error(ErrorCode::kFormat, {"<|none|>"}, [&] { open_tokenizer(dir); });
}

TEST_F(TokenizerTest, RefusesAModelAloneThatTransformersReadsOtherwise) {
  const auto dir = copy_of_trained();
  fs::remove(dir / "tokenizer.json");
  EXPECT_EQ(open_tokenizer(dir)->vocab_size(), 400);
  fs::remove(dir / "tokenizer_config.json");
  expect_error(ErrorCode::kUnsupported, {"tokenizer.model", "add_prefix_space", "AutoTokenizer"},
               [&] { open_tokenizer(dir); });

  SpmModel model = SpmModel::parse(read_file(trained() / "tokenizer.model"), "model");
  EXPECT_EQ(spm_disagreement(model), "");
  model.add_dummy_prefix = true;
  model.is_bpe = false;
  EXPECT_EQ(spm_disagreement(model), "it is not of type bpe, it adds a dummy prefix");
}

TEST_F(TokenizerTest, WritesAVocabularyWithEveryPieceAndMergesOfPieces) {
  const Json json = Json::read(trained() / "tokenizer.json");
  const Json& model = json.at("model");
  EXPECT_EQ(model.at("vocab").members().size(), 400u);
  for (const auto& merge : model.at("merges").items()) {
    const std::string& left = merge.items()[0].as_string();
    const std::string& right = merge.items()[1].as_string();
    EXPECT_NE(model.at("vocab").find(left), nullptr);
    EXPECT_NE(model.at("vocab").find(right), nullptr);
    EXPECT_NE(model.at("vocab").find(left + right), nullptr) << left << " " << right;
  }
}

TEST_F(TokenizerTest, TokenFileHoldsDocumentsThatEndWithEos) {
  const auto tokenizer = open_tokenizer(trained());
  const std::vector<std::string> documents{"the river", "", "old trees"};
  const auto card = tokenize_documents(documents, *tokenizer, scratch_ / "set", {"here"});
  const auto file = TokenFile::open(scratch_ / "set");
  EXPECT_EQ(card.documents, 2u);
  EXPECT_EQ(card.tokens, file.num_tokens());
  EXPECT_EQ(card.text_bytes, 18u);
  file.check_vocabulary(400, tokenizer_digest(trained()));
  for (uint64_t d = 0; d < file.num_documents(); ++d) {
    const auto [begin, end] = file.document(d);
    std::vector<int64_t> ids(end - begin);
    file.read(begin, ids);
    EXPECT_EQ(ids.back(), 2);
    const auto expected = encode(*tokenizer, d == 0 ? "the river" : "old trees");
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), ids.begin(), ids.end() - 1));
  }
}

TEST_F(TokenizerTest, FilesAndDocumentsGiveTheSameTokens) {
  const auto tokenizer = open_tokenizer(trained());
  const auto documents = sample_documents();
  std::string lines;
  for (const auto& document : documents) lines += Json::object({{"text", Json(document)}}).dump() + "\n";
  io::write_file_atomically(scratch_ / "text.jsonl", lines);
  const std::vector<fs::path> files{scratch_ / "text.jsonl"};
  tokenize_files(files, {}, *tokenizer, scratch_ / "a");
  tokenize_documents(documents, *tokenizer, scratch_ / "b", {});
  EXPECT_EQ(TokenFile::open(scratch_ / "a").digest(), TokenFile::open(scratch_ / "b").digest());
}

TEST_F(TokenizerTest, TextWithoutDocumentsLeavesNothing) {
  const auto tokenizer = open_tokenizer(trained());
  const std::vector<std::string> documents{"", ""};
  expect_error(ErrorCode::kFormat, {"no document"},
               [&] { tokenize_documents(documents, *tokenizer, scratch_ / "set", {}); });
  EXPECT_TRUE(fs::is_empty(scratch_.path()));
}

// Without tokenizers there is no helper; the message says how to get one.
TEST_F(TokenizerTest, ExplainsHowToGetAPythonForTokenizerJson) {
  const auto dir = copy_of_trained();
  fs::remove(dir / "tokenizer.model");
  const char* before = std::getenv("COPPICE_PYTHON");
  const std::string kept = before == nullptr ? "" : before;
  for (const auto& [python, says] :
       {std::pair{"/no/such/python", "cannot be run"}, {"/bin/false", "ended with status 1"}}) {
    ::setenv("COPPICE_PYTHON", python, 1);
    expect_error(ErrorCode::kIo, {says, "tools/setup light", "COPPICE_PYTHON"}, [&] { open_tokenizer(dir); });
  }
  before == nullptr ? ::unsetenv("COPPICE_PYTHON") : ::setenv("COPPICE_PYTHON", kept.c_str(), 1);
}

}  // namespace
}  // namespace coppice::data
