#include "coppice/data/spm_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

#include "coppice/base/error.h"
#include "coppice/base/text.h"

namespace coppice::data {
namespace {

constexpr size_t kMostPieceBytes = 256;  // merges_of tries every split of each piece

/// Reads the fields of a protobuf message one by one.
class WireReader {
 public:
  WireReader(std::string_view bytes, std::string_view source) : bytes_(bytes), source_(source) {}

  bool next() {
    if (bytes_.empty()) return false;
    const uint64_t tag = varint();
    field = tag >> 3;
    number = 0;
    text = {};
    switch (tag & 7) {
      case 0: number = varint(); break;
      case 1: take(8); break;
      case 2: text = take(varint()); break;
      case 5: {
        const auto four = take(4);
        uint32_t word = 0;
        std::memcpy(&word, four.data(), 4);
        number = word;
        break;
      }
      default: fail();
    }
    return true;
  }

  uint64_t field = 0, number = 0;
  std::string_view text;

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    fail();
  }
  std::string_view take(uint64_t count) {
    if (count > bytes_.size()) fail();
    const auto out = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return out;
  }
  [[noreturn]] void fail() const {
    throw Error(ErrorCode::kFormat, cat(source_, ": is not a sentencepiece model, or it is damaged (copy it again)"));
  }

  std::string_view bytes_, source_;
};

SpmModel::Piece parse_piece(std::string_view bytes, std::string_view source) {
  SpmModel::Piece piece;
  for (WireReader r(bytes, source); r.next();) {
    if (r.field == 1) piece.text = r.text;
    if (r.field == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(r.number));
    if (r.field == 3 && r.number >= 1 && r.number <= 6) piece.kind = static_cast<SpmModel::Kind>(r.number);
  }
  if (piece.text.size() > kMostPieceBytes || !std::isfinite(piece.score)) {
    throw Error(ErrorCode::kFormat, cat(source, ": is not a sentencepiece model, or it is damaged: a piece of ",
                                        piece.text.size(), " bytes with the score ", piece.score, "; wanted at most ",
                                        kMostPieceBytes, " bytes and a finite score (copy it again)"));
  }
  return piece;
}

Json string_pattern(std::string_view text) { return Json::object({{"String", Json(text)}}); }

Json replace(std::string_view kind_of, std::string_view from, std::string_view to) {
  return Json::object({{"type", Json(kind_of)}, {"pattern", string_pattern(from)}, {"content", Json(to)}});
}

Json added_token(size_t id, const std::string& text) {
  return Json::object({{"id", Json(static_cast<int64_t>(id))},
                       {"content", Json(text)},
                       {"single_word", Json(false)},
                       {"lstrip", Json(false)},
                       {"rstrip", Json(false)},
                       {"normalized", Json(false)},
                       {"special", Json(true)}});
}

/// [[left, right], ...]: every way to join two pieces into a third, best score first.
Json merges_of(const SpmModel& model) {
  std::unordered_map<std::string_view, size_t> ids;
  std::vector<size_t> order;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    if (model.pieces[i].kind != SpmModel::Kind::kNormal) continue;
    ids.emplace(model.pieces[i].text, i);
    order.push_back(i);
  }
  std::ranges::stable_sort(order, std::greater{}, [&](size_t i) { return model.pieces[i].score; });
  Json::Array merges;
  for (const size_t i : order) {
    const std::string_view text = model.pieces[i].text;
    std::vector<std::pair<size_t, size_t>> pairs;
    for (size_t cut = 1; cut < text.size(); ++cut) {
      const auto left = ids.find(text.substr(0, cut)), right = ids.find(text.substr(cut));
      if (left != ids.end() && right != ids.end()) pairs.emplace_back(left->second, right->second);
    }
    std::ranges::sort(pairs);
    for (const auto& [l, r] : pairs) {
      merges.push_back(Json::array({Json(model.pieces[l].text), Json(model.pieces[r].text)}));
    }
  }
  return Json::array(std::move(merges));
}

}  // namespace

SpmModel SpmModel::parse(std::string_view bytes, std::string_view source) {
  SpmModel out;
  uint64_t model_type = 1;
  for (WireReader r(bytes, source); r.next();) {
    if (r.field == 1) out.pieces.push_back(parse_piece(r.text, source));
    if (r.field == 2) {
      for (WireReader t(r.text, source); t.next();) {
        if (t.field == 3) model_type = t.number;
        if (t.field == 24) out.whitespace_as_suffix = t.number != 0;
        if (t.field == 35) out.byte_fallback = t.number != 0;
      }
    }
    if (r.field == 3) {
      for (WireReader n(r.text, source); n.next();) {
        if (n.field == 1) out.normalization = n.text;
        if (n.field == 2) out.has_character_map = !n.text.empty();
        if (n.field == 3) out.add_dummy_prefix = n.number != 0;
        if (n.field == 4) out.remove_extra_whitespaces = n.number != 0;
        if (n.field == 5) out.escape_whitespaces = n.number != 0;
      }
    }
  }
  out.is_bpe = model_type == 2;
  if (out.pieces.empty()) {
    throw Error(ErrorCode::kFormat, cat(source, ": is not a sentencepiece model: it has no pieces (copy it again)"));
  }
  std::unordered_set<std::string_view> seen;
  for (const Piece& piece : out.pieces) {
    if (seen.insert(piece.text).second) continue;
    throw Error(ErrorCode::kFormat, cat(source, ": is not a sentencepiece model: the piece '", piece.text.substr(0, 40),
                                        "' appears twice (copy it again)"));
  }
  return out;
}

std::string spm_disagreement(const SpmModel& model) {
  std::vector<std::string> reasons;
  if (!model.is_bpe) reasons.emplace_back("it is not of type bpe");
  if (!model.byte_fallback) reasons.emplace_back("it has no byte fallback");
  if (model.has_character_map) reasons.push_back(cat("it normalizes by ", model.normalization));
  if (model.add_dummy_prefix) reasons.emplace_back("it adds a dummy prefix");
  if (model.remove_extra_whitespaces) reasons.emplace_back("it removes extra whitespace");
  if (!model.escape_whitespaces) reasons.emplace_back("it does not escape whitespace");
  if (model.whitespace_as_suffix) reasons.emplace_back("it treats whitespace as a suffix");
  if (std::ranges::any_of(model.pieces, [](const auto& p) { return p.kind == SpmModel::Kind::kUserDefined; })) {
    reasons.emplace_back("it has user-defined pieces");
  }
  return join(reasons);
}

Json spm_to_tokenizer_json(const SpmModel& model) {
  Json::Array added;
  Json::Object vocab;
  std::string unknown;
  for (size_t i = 0; i < model.pieces.size(); ++i) {
    const auto& piece = model.pieces[i];
    vocab.emplace_back(piece.text, Json(static_cast<int64_t>(i)));
    if (piece.kind == SpmModel::Kind::kUnknown) unknown = piece.text;
    if (piece.kind == SpmModel::Kind::kUnknown || piece.kind == SpmModel::Kind::kControl) {
      added.push_back(added_token(i, piece.text));
    }
  }
  const auto step = [](std::string_view type) { return Json::object({{"type", Json(type)}}); };
  return Json::object({{"version", Json("1.0")},
                       {"truncation", Json()},
                       {"padding", Json()},
                       {"added_tokens", Json::array(std::move(added))},
                       {"normalizer", replace("Replace", " ", kSpaceMark)},
                       {"pre_tokenizer", Json()},
                       {"post_processor", Json()},
                       {"decoder", Json::object({{"type", Json("Sequence")},
                                                 {"decoders", Json::array({replace("Replace", kSpaceMark, " "),
                                                                           step("ByteFallback"), step("Fuse")})}})},
                       {"model", Json::object({{"type", Json("BPE")},
                                               {"dropout", Json()},
                                               {"unk_token", Json(unknown)},
                                               {"continuing_subword_prefix", Json()},
                                               {"end_of_word_suffix", Json()},
                                               {"fuse_unk", Json(true)},
                                               {"byte_fallback", Json(true)},
                                               {"ignore_merges", Json(false)},
                                               {"vocab", Json::object(std::move(vocab))},
                                               {"merges", merges_of(model)}})}});
}

}  // namespace coppice::data
