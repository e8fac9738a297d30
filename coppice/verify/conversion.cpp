#include "coppice/verify/conversion.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <string_view>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/convert/convert.h"
#include "coppice/convert/lineage.h"
#include "coppice/methods/new_router.h"
#include "coppice/plan/lineage.h"
#include "coppice/verify/config.h"
#include "coppice/verify/difference_detail.h"
#include "coppice/verify/files.h"
#include "coppice/verify/verify.h"

namespace coppice::verify {
namespace {

using convert::Conversion;
using convert::Origin;
using families::Model;

/// Checks router rows that came from a file and cannot be recomputed: by their digest, or at least that they are
/// finite.
std::string check_given_rows(const io::TensorInfo& wanted, const Model& after,
                             const std::map<std::string, std::string>& digests) {
  if (!after.checkpoint.contains(wanted.name)) return cat("'", wanted.name, "': is missing");
  const io::Checkpoint::Entry entry = after.checkpoint.at(wanted.name);
  const io::TensorInfo& found = *entry.info;
  if (found.shape != wanted.shape || found.dtype != wanted.dtype) {
    return cat("'", wanted.name, "': is ", io::dtype_name(found.dtype), " ", shape_text(found.shape), "; wanted ",
               io::dtype_name(wanted.dtype), " ", shape_text(wanted.shape));
  }
  if (const auto digest = digests.find(wanted.name); digest != digests.end()) {
    Sha256 sha;
    sha.add(entry.data());
    return sha.hex() == digest->second
               ? std::string()
               : cat("'", wanted.name, "': its rows are not those that were read from a file, by their digest in ",
                     io::kLineageFile);
  }
  const auto values = after.checkpoint.read_f32(wanted.name);
  const bool finite = std::ranges::all_of(values, [](float x) { return std::isfinite(x); });
  return finite ? std::string() : cat("'", wanted.name, "': has NaN or infinity");
}

int64_t& counter(ConversionResult& result, Origin origin, bool averages, bool given) {
  switch (origin) {
    case Origin::kCopy: return averages ? result.changed : result.identical;
    case Origin::kPlusOne:
    case Origin::kEmbeddings: return result.changed;
    case Origin::kRouter: return given ? result.routers_given : result.routers;
    case Origin::kExperts:
    case Origin::kExpertMean: return result.experts;
    case Origin::kZeros:
    case Origin::kOnes:
    case Origin::kShared: break;
  }
  return result.new_parts;
}

void compare(const Conversion& conversion, const Model& after, size_t threads, ConversionResult& result) {
  const convert::Mapping& mapping = conversion.mapping();
  const auto tensors = conversion.tensors();
  const bool averages = result.plan && result.plan->parents > 1 && result.plan->trunk == "average";
  const bool given = result.plan && methods::new_router(result.plan->router.name).row == nullptr;
  std::map<std::string, std::string> digests;
  if (given) digests = convert::given_routers(*plan::read_lineage(after.checkpoint.directory()));
  const std::vector<std::string> texts = conversion.sources();
  ConfigDifferences config = compare_configs(mapping.config, after.config);
  std::ranges::move(config.problems, std::back_inserter(result.problems));
  std::ranges::move(config.not_compared("config.json"), std::back_inserter(result.not_compared));
  result.losses = mapping.losses;

  std::vector<std::string> problems(tensors.size());
  Progress progress("verify", output::total_bytes(output::infos_of(tensors)), ProgressUnit::kBytes);
  parallel_for(tensors.size(), threads, [&](size_t i) {
    check_interrupt();
    const bool by_hand = given && mapping.tensors[i].origin == Origin::kRouter;
    problems[i] = by_hand
                      ? check_given_rows(tensors[i].info, after, digests)
                      : detail::difference(tensors[i], after,
                                           "its bytes differ from what the conversion computes from the model before");
    progress.advance(tensors[i].info.bytes);
  });
  for (size_t i = 0; i < problems.size(); ++i) {
    result.tensors.emplace_back(tensors[i].info.name, texts[i]);
    if (problems[i].empty()) {
      ++counter(result, mapping.tensors[i].origin, averages, given);
    } else {
      result.problems.push_back(problems[i]);
    }
  }
  if (result.routers_given > 0 && digests.empty())
    result.not_compared.push_back(cat("rows of ", result.routers_given, " routers, which were read from a file"));
  std::set<std::string_view> known;
  for (const output::OutputTensor& tensor : tensors) known.insert(tensor.info.name);
  for (const auto& slot : after.slots) {
    if (!known.contains(slot.name))
      result.problems.push_back(cat("'", slot.name, "': is not part of a converted model"));
  }
}

/// Reports a trainer/: a conversion writes none, because optimizer state does not fit the converted model.
void check_files(const Model& before, const Model& after, ConversionResult& result) {
  FileResult files = compare_files(before, after, plan::read_lineage(after.checkpoint.directory()).has_value());
  result.files_equal = files.equal;
  std::ranges::move(files.problems, std::back_inserter(result.problems));
  std::ranges::move(files.not_compared, std::back_inserter(result.not_compared));
  if (std::filesystem::exists(after.checkpoint.directory() / io::kTrainerFolder))
    result.problems.push_back(cat("'", io::kTrainerFolder, "/': is not part of a converted model"));
  result.ok = result.problems.empty();
}

/// Compares the digests of models that the newest step records with those of the given models.
void check_sources(std::span<const Model> parents, const Json& lineage, ConversionResult& result) {
  const Json& step = lineage.at("steps").items().back();
  const Json* digests = step.find("source_digests");
  if (digests == nullptr) return;
  const bool is_list = digests->is_array() && digests->items().size() == parents.size();
  for (size_t i = 0; is_list && i < parents.size(); ++i) {
    if (digests->items()[i] == Json(parents[i].digest())) continue;
    result.not_compared.push_back(
        cat(io::kLineageFile, ", whose digest belongs to another model than ", parents[i].checkpoint.directory()));
  }
  if (!is_list)
    result.problems.push_back(
        cat(io::kLineageFile, ": 'source_digests' is ", digests->dump(), "; wanted one per model"));
}

}  // namespace

ConversionResult verify_conversion(std::span<const Model> parents, const Model& after, size_t threads) {
  const auto& directory = after.checkpoint.directory();
  const auto lineage = plan::read_lineage(directory);
  ConversionResult result;
  if (lineage) result.plan = convert::newest_conversion(*lineage);
  if (!result.plan) {
    throw Error(ErrorCode::kFormat, cat(directory, ": ", io::kLineageFile,
                                        " has no conversion as its newest step, so the conversion cannot be repeated "
                                        "(verify the model as `coppice convert` wrote it)"));
  }
  if (std::cmp_not_equal(result.plan->parents, parents.size())) {
    throw Error(ErrorCode::kUsage, cat(directory, ": was converted from ", result.plan->parents, " dense models, but ",
                                       parents.size(), " are given (give all, in their order)"));
  }
  result.from = result.plan->from;
  result.to = result.plan->to;
  convert::check_conversion_plan(parents.front().config, *result.plan);
  convert::ConversionPlan plan = *result.plan;
  plan.lossy = true;  // what was left out is reported, and the user agreed to it then
  const Conversion conversion(parents, plan, nullptr);
  compare(conversion, after, threads, result);
  check_sources(parents, *lineage, result);
  check_files(parents.front(), after, result);
  return result;
}

ConversionResult verify_average(const Model& moe, const Model& after, size_t threads) {
  ConversionResult result;
  result.from = moe.config.family->model_type;
  result.to = after.config.family->model_type;
  const Conversion conversion(moe, result.to, true);
  compare(conversion, after, threads, result);
  check_files(moe, after, result);
  return result;
}

std::string ConversionResult::verdict() const { return verdict_of(problems, not_compared); }

Json ConversionResult::to_json() const {
  Json json = Json::object();
  json["ok"] = ok;
  json["families"] = Json::array({Json(from), Json(to)});
  if (plan) json["plan"] = plan->to_json();
  json["identical"] = identical;
  json["changed"] = changed;
  json["expert_tensors"] = experts;
  json["routers"] = routers;
  json["routers_given"] = routers_given;
  json["new_parts"] = new_parts;
  json["files_equal"] = files_equal;
  Json& sources = json["tensors"] = Json::object();
  for (const auto& [name, text] : tensors) sources[name] = text;
  json["losses"] = Json::array_of(losses);
  json["not_compared"] = Json::array_of(not_compared);
  json["problems"] = Json::array_of(problems);
  return json;
}

}  // namespace coppice::verify
