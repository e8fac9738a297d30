// trainer.json of a checkpoint: any JSON gives a state that survives writing and reading, or Error{kFormat}.
#include "coppice/save/trainer_state.h"
#include "fuzz/fuzzed.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using coppice::Json;
  using coppice::save::TrainerState;
  TrainerState state;
  try {
    state = TrainerState::from_json(Json::parse(coppice::fuzz::text_of(data, size), "input"), "input");
  } catch (const coppice::Error& e) {
    coppice::fuzz::require_refusal(e, {coppice::ErrorCode::kFormat});
    return 0;
  }
  const Json json = state.to_json();
  coppice::fuzz::require(TrainerState::from_json(Json::parse(json.dump(), "text"), "text").to_json() == json);
  return 0;
}
