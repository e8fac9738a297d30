#include "coppice/upcycle/verify_conversion.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>
#include <utility>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/upcycle/convert.h"
#include "coppice/upcycle/convert_router.h"
#include "coppice/upcycle/lineage.h"
#include "coppice/upcycle/verify_detail.h"

namespace coppice::upcycle {
namespace {

using families::Model;

/// Rows of a file cannot be made again; what must hold of them is that they are numbers.
std::string check_given_rows(const io::TensorInfo& wanted, const Model& after) {
  if (!after.checkpoint.contains(wanted.name)) return cat("'", wanted.name, "': it is missing");
  const io::TensorInfo& found = *after.checkpoint.at(wanted.name).info;
  if (found.shape != wanted.shape || found.dtype != wanted.dtype) {
    return cat("'", wanted.name, "': it is ", io::dtype_name(found.dtype), " ", shape_text(found.shape), ", not ",
               io::dtype_name(wanted.dtype), " ", shape_text(wanted.shape));
  }
  const auto values = after.checkpoint.read_f32(wanted.name);
  const bool finite = std::ranges::all_of(values, [](float x) { return std::isfinite(x); });
  return finite ? std::string() : cat("'", wanted.name, "': NaN or infinity among the rows");
}

int64_t& counter(ConversionAccount& account, Origin origin, bool averages, bool given) {
  switch (origin) {
    case Origin::kCopy: return averages ? account.changed : account.identical;
    case Origin::kPlusOne:
    case Origin::kEmbeddings: return account.changed;
    case Origin::kRouter: return given ? account.routers_given : account.routers;
    case Origin::kExperts:
    case Origin::kExpertMean: return account.experts;
    case Origin::kZeros:
    case Origin::kOnes:
    case Origin::kShared: break;
  }
  return account.new_parts;
}

void compare(const Conversion& conversion, const Model& after, size_t threads, ConversionAccount& account) {
  const Mapping& mapping = conversion.mapping();
  const auto tensors = conversion.tensors();
  const bool averages = account.plan && account.plan->parents > 1 && account.plan->trunk == "average";
  const bool given = account.plan && new_router(account.plan->router.name).row == nullptr;
  const std::vector<std::string> texts = conversion.account();
  detail::compare_objects(mapping.config.json, after.config.json, {}, account.problems);
  account.losses = mapping.losses;

  std::vector<std::string> problems(tensors.size());
  Progress progress("verify", total_bytes(infos_of(tensors)), ProgressUnit::kBytes);
  parallel_for(tensors.size(), threads, [&](size_t i) {
    check_interrupt();
    const bool by_hand = given && mapping.tensors[i].origin == Origin::kRouter;
    problems[i] =
        by_hand ? check_given_rows(tensors[i].info, after) : detail::difference(tensors[i], after, "the conversion");
    progress.advance(tensors[i].info.bytes);
  });
  for (size_t i = 0; i < problems.size(); ++i) {
    account.tensors.emplace_back(tensors[i].info.name, texts[i]);
    if (problems[i].empty()) {
      ++counter(account, mapping.tensors[i].origin, averages, given);
    } else {
      account.problems.push_back(problems[i]);
    }
  }
  std::set<std::string_view> known;
  for (const OutputTensor& tensor : tensors) known.insert(tensor.info.name);
  for (const auto& slot : after.slots) {
    if (!known.contains(slot.name)) account.problems.push_back(cat("'", slot.name, "': no conversion makes it"));
  }
  account.ok = account.problems.empty();
}

}  // namespace

ConversionAccount verify_conversion(std::span<const Model> parents, const Model& after, size_t threads) {
  const auto& directory = after.checkpoint.directory();
  const auto lineage = read_lineage(directory);
  ConversionAccount account;
  if (lineage) account.plan = newest_conversion(*lineage);
  if (!account.plan) {
    throw Error(ErrorCode::kFormat, cat(directory, ": ", kLineageFile,
                                        " names no conversion as the newest step, so what was drawn is not known "
                                        "(verify the model as `coppice convert` wrote it)"));
  }
  if (std::cmp_not_equal(account.plan->parents, parents.size())) {
    throw Error(ErrorCode::kUsage, cat(directory, ": made of ", account.plan->parents, " dense models; ",
                                       parents.size(), " are given (name all, in their order)"));
  }
  account.from = account.plan->from;
  account.to = account.plan->to;
  check_conversion_plan(parents.front().config, *account.plan);
  ConversionPlan plan = *account.plan;
  plan.lossy = true;  // what was left out is told, and was agreed to
  const Conversion conversion(parents, plan, nullptr);
  compare(conversion, after, threads, account);
  return account;
}

ConversionAccount verify_average(const Model& moe, const Model& after, size_t threads) {
  ConversionAccount account;
  account.from = moe.config.family->model_type;
  account.to = after.config.family->model_type;
  const Conversion conversion(moe, account.to, true);
  compare(conversion, after, threads, account);
  return account;
}

Json ConversionAccount::to_json() const {
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
  Json& accounts = json["tensors"] = Json::object();
  for (const auto& [name, text] : tensors) accounts[name] = text;
  json["losses"] = Json::array_of(losses);
  json["problems"] = Json::array_of(problems);
  return json;
}

}  // namespace coppice::upcycle
