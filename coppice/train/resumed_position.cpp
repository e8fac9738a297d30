#include "coppice/train/resumed_position.h"

#include <algorithm>
#include <string>

#include "coppice/base/error.h"
#include "coppice/base/text.h"
#include "coppice/io/model_directory.h"
#include "coppice/train/run_directory.h"

namespace coppice::train {
namespace {

class Check {
 public:
  Check(const std::filesystem::path& checkpoint, const save::TrainerState& state, const RunSettings& settings)
      : file_(checkpoint / io::kTrainerFolder / io::kTrainerFile),
        position_(state.position),
        settings_(settings),
        begins_at_0_(state.settings.find("train.start") == nullptr ||
                     state.settings.at("train.start") == Json("fresh")),
        sequence_length_(static_cast<uint64_t>(state.settings.at("data.sequence_length").as_int())) {
    if (checkpoint.filename() != checkpoint_path("", position_.step).filename()) {
      refuse("step", position_.step, cat("the step in the name of its directory, ", checkpoint.filename()));
    }
  }

  void growths() const {
    const auto done =
        std::ranges::count_if(settings_.stages, [&](const auto& s) { return s.at_step < position_.step; });
    if (position_.growths != done)
      refuse("growths", position_.growths, cat(done, ", the number of [[growth]] stages before its step"));
    if (done > 0) {
      const int64_t newest = settings_.stages[static_cast<size_t>(done - 1)].at_step;
      if (position_.grown_at != newest)
        refuse("grown_at", position_.grown_at, cat(newest, ", the step of the newest expansion"));
      return;
    }
    const bool grew_before = settings_.handover.policy != HandoverPolicy::kNone;
    const int64_t least = grew_before && settings_.stages.empty() ? 0 : -1;
    const int64_t most = !grew_before ? -1 : begins_at_0_ ? 0 : position_.step;
    if (position_.grown_at < least || position_.grown_at > most) {
      refuse("grown_at", position_.grown_at, least == most ? std::to_string(least) : cat(least, " to ", most));
    }
  }

  void handover() const {
    const auto& [policy, steps] = settings_.handover;
    const bool sleeps = policy == HandoverPolicy::kDormant && position_.grown_at >= 0;
    const bool is_known = !sleeps || steps > 0;  // otherwise it followed from balance.rate and the depth of the copies
    if (is_known && position_.wake_steps != (sleeps ? steps : 0)) {
      refuse("wake_steps", position_.wake_steps,
             sleeps ? cat(steps, ", handover.steps") : "0, because no copies are dormant");
    }
    const bool may_have_begun = position_.growths == 0 && position_.grown_at >= 0;
    const int64_t most = !may_have_begun ? 0 : policy == HandoverPolicy::kRelease ? steps : position_.wake_steps;
    if (position_.released > most) refuse("released", position_.released, cat("at most ", most));
  }

  void losses() const {
    const auto least = std::min<size_t>(1, static_cast<size_t>(position_.step));
    const size_t found = position_.recent_losses.size();
    if (found >= least && found <= step::Position::kRecentLosses) return;
    refuse("recent_losses", cat("a list of ", found), cat(least, " to ", step::Position::kRecentLosses));
  }

  void data() const {
    if (!begins_at_0_) return;  // it includes the windows of an earlier run
    const auto windows = static_cast<uint64_t>(position_.step) * static_cast<uint64_t>(settings_.batch);
    if (position_.next_sample != windows) {
      refuse("next_sample", position_.next_sample, cat(windows, ", ", settings_.batch, " windows per step"));
    }
    const auto tokens = windows * sequence_length_;
    if (position_.tokens_seen != tokens) {
      refuse("tokens_seen", position_.tokens_seen, cat(tokens, ", ", sequence_length_, " a window"));
    }
  }

 private:
  template <class Value>
  [[noreturn]] void refuse(std::string_view key, Value found, const std::string& wanted) const {
    throw Error(ErrorCode::kFormat, cat(file_, ": '", key, "' is ", found, "; wanted ", wanted,
                                        " (the file is damaged: go back to an earlier checkpoint)"));
  }

  std::filesystem::path file_;
  const step::Position& position_;
  const RunSettings& settings_;
  bool begins_at_0_;
  uint64_t sequence_length_;
};

}  // namespace

void check_position(const std::filesystem::path& checkpoint, const save::TrainerState& state,
                    const RunSettings& settings) {
  const Check check(checkpoint, state, settings);
  check.growths();
  check.handover();
  check.losses();
  check.data();
}

}  // namespace coppice::train
