#include "coppice/save/shared_checkpoint.h"

#include <array>
#include <string>
#include <utility>

#include "coppice/base/check.h"
#include "coppice/dist/all_or_none.h"

namespace coppice::save {

SharedCheckpoint::SharedCheckpoint(std::filesystem::path target, const nn::Decoder& model,
                                   const step::Optimizer& optimizer, TrainerState state, Companions companions)
    : target_(std::move(target)),
      division_(model.division()),
      saved_(saved_state(model, optimizer, Copies::kCopy)),
      state_(std::move(state)),
      companions_(std::move(companions)) {
  dist::Group& control = division_.world->control();
  dist::all_or_none(control, [&] {
    if (!is_first()) return;
    io::check_free_space(target_.parent_path(), CheckpointFiles::bytes_of(saved_.config, saved_.dtype));
    directory_ = std::make_unique<io::AtomicDirectory>(target_);
    files_ =
        std::make_unique<CheckpointFiles>(target_, directory_->path(), saved_.config, saved_.dtype, FileRole::kMaker);
  });
  const std::string path = dist::broadcast_text(control, is_first() ? directory_->path().string() : "", 0);
  dist::all_or_none(control, [&] {
    if (is_first()) return;
    files_ = std::make_unique<CheckpointFiles>(target_, path, saved_.config, saved_.dtype, FileRole::kJoined);
  });
}

void SharedCheckpoint::write() {
  files_->write(saved_);
  bytes_ = files_->finish();
  saved_.tensors.clear();
}

void SharedCheckpoint::commit(const std::exception_ptr& own) {
  dist::Group& control = division_.world->control();
  dist::all_or_none(control, [&] {
    if (own) std::rethrow_exception(own);
  });
  std::array<int64_t, 1> sum{static_cast<int64_t>(bytes_)};
  division_.sum_over_ranks(sum);
  dist::all_or_none(control, [&] {
    const auto written = static_cast<uint64_t>(sum.front());
    const uint64_t wanted = CheckpointFiles::bytes_of(saved_.config, saved_.dtype);
    COPPICE_CHECK(written == wanted, target_, ": the ranks wrote ", written, " bytes of ", wanted);
    if (!is_first()) return;
    write_companions(directory_->path(), saved_.config, saved_.dtype, state_, companions_);
    directory_->commit();
  });
}

}  // namespace coppice::save
