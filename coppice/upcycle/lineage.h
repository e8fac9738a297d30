#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coppice/base/json.h"
#include "coppice/upcycle/convert_plan.h"
#include "coppice/upcycle/plan.h"

namespace coppice::upcycle {

inline constexpr const char* kLineageFile = "coppice.json";

/// The lineage `before` with one expansion appended (design.md section 3); starts one if there is none. `settings`, an
/// object of the resolved options, is kept in the step unless it is null.
///
/// Throws   Error{kFormat} if `before` is no lineage.
Json extend_lineage(const std::optional<Json>& before, const GrowthPlan& plan, std::string_view command,
                    std::string_view source_digest, const Json& settings = {});

/// What a conversion leaves in the lineage.
struct ConversionRecord {
  const ConversionPlan* plan =
      nullptr;  ///< kept whole, so that `verify` can make the model again; nullptr: the way back
  std::string from, to;
  int64_t experts_before = 0;  ///< of the way back: those that were averaged
  std::vector<std::string> source_digests;
  std::vector<std::string> losses;
  std::map<std::string, std::string> given_routers;  ///< SHA-256 by tensor, where a file gave the rows
  Json settings;
};
/// The first parent's lineage `before` with a conversion appended: a step `convert`, whose parents count slices of
/// dense models, or a step `dense_average`, which has none.
///
/// Throws   Error{kFormat} if `before` is no lineage.
Json extend_lineage(const std::optional<Json>& before, const ConversionRecord& record);

/// coppice.json of a model directory, checked whole, if there is one.
///
/// Throws   Error{kFormat} naming file, step and key; Error{kIo}.
std::optional<Json> read_lineage(const std::filesystem::path& model);

/// parents[layer] -> [N] of the newest step, if that is an expansion.
///
/// Throws   Error{kFormat} if `lineage` is none.
std::optional<std::map<int64_t, std::vector<uint32_t>>> newest_parents(const Json& lineage);

/// How a model in training still routes by lineage: while the share is above 0, its plain top-K is another function than
/// the one that it was trained with.
struct LineageShare {
  double share = 0;              ///< of the tokens, in the next step
  std::optional<uint64_t> seed;  ///< that draws them; coppice 0.1.0 did not note it
  int64_t steps = 0;             ///< of the whole release; 0: not noted, or kept for good
};

/// `lineage` with a note of it; a share of 0 removes the note.
Json with_lineage_share(Json lineage, const LineageShare& note);
/// The note in a lineage; all zero where there is none.
///
/// Throws   Error{kFormat} if the share is no number from 0 to 1, or seed or steps are no whole numbers of 0 or more.
LineageShare noted_lineage_share(const Json& lineage);
/// `lineage` with the share removed and with the training step at which its newest growth was released whole. A step
/// that is noted already stays.
Json with_release_over(const Json& lineage, int64_t step);
/// The training step by which every token had left lineage-unique routing; nothing where no release of the newest growth
/// has ended.
///
/// Throws   Error{kFormat} if it is not a whole number of 0 or more.
std::optional<int64_t> released_at(const Json& lineage);
/// Its share alone.
double lineage_share(const Json& lineage);
/// What to tell who opens such a model; nothing where the share is 0.
std::optional<std::string> routing_warning(const std::filesystem::path& model, const std::optional<Json>& lineage);

/// What the newest step of a lineage says of a growth: all that is needed to make it again, but for the factors that
/// follow from the model (see `growth_of`).
struct RecordedGrowth {
  GrowthPlan plan;  ///< a parent's first child is the original, the others count in their order
  std::string source_digest, command;
};
/// The newest step, if that is an expansion.
///
/// Throws   Error{kFormat} naming step and key.
std::optional<RecordedGrowth> newest_growth(const Json& lineage);

/// SHA-256 of the routers whose rows a file gave to the newest step, a conversion, by tensor; what 0.1.0 wrote has none.
std::map<std::string, std::string> given_routers(const Json& lineage);
/// The plan of the newest step, if that is a conversion to a Mixture of Experts.
///
/// Throws   Error{kFormat}.
std::optional<ConversionPlan> newest_conversion(const Json& lineage);

}  // namespace coppice::upcycle
