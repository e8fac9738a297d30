// tokenizer.model: any bytes are a sentencepiece model of which a tokenizer.json can be made, or Error{kFormat}.
#include <cmath>

#include "coppice/data/spm_model.h"
#include "fuzz/fuzzed.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::fuzz::require;
  coppice::data::SpmModel model;
  try {
    model = coppice::data::SpmModel::parse(coppice::fuzz::text_of(data, size), "input");
  } catch (const coppice::Error& e) {
    coppice::fuzz::require_refusal(e, {coppice::ErrorCode::kFormat});
    return 0;
  }
  for (const auto& piece : model.pieces) require(std::isfinite(piece.score));
  (void)coppice::data::spm_disagreement(model);
  const auto json = coppice::data::spm_to_tokenizer_json(model);
  require(json.at("model").at("vocab").members().size() <= model.pieces.size());
  return 0;
}
