#pragma once

#include <functional>
#include <string>

#include "coppice/dist/group.h"

namespace coppice::dist {

/// Runs `step` on every rank; if any rank threw, every rank throws.
///
/// Ranks    collective over `group`, a group for host tensors. `step` itself must not communicate.
/// Throws   this rank's own exception; Error{kPeer} with the first other rank's name and sentence if only others threw.
void all_or_none(Group& group, const std::function<void()>& step);

/// The `text` of `root` on every rank; the argument of the others is not looked at.
///
/// Ranks    collective over `group`, a group for host tensors.
/// Memory   the text, once more while it is sent.
std::string broadcast_text(Group& group, const std::string& text, int64_t root);

}  // namespace coppice::dist
