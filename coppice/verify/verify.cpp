#include "coppice/verify/verify.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "coppice/base/error.h"
#include "coppice/base/interrupt.h"
#include "coppice/base/progress.h"
#include "coppice/base/sha256.h"
#include "coppice/base/text.h"
#include "coppice/base/thread_pool.h"
#include "coppice/grow/dequantised.h"
#include "coppice/grow/grown_model.h"
#include "coppice/plan/lineage.h"
#include "coppice/plan/recorded_growth.h"
#include "coppice/plan/undo.h"
#include "coppice/verify/config.h"
#include "coppice/verify/content.h"
#include "coppice/verify/files.h"
#include "coppice/verify/lineage.h"
#include "coppice/verify/made.h"
#include "coppice/verify/recognise.h"

namespace coppice::verify {
namespace {

using families::Model;
using families::ModelConfig;
using grow::GrownModel;

/// Finds how `after` was made, if that is possible.
class Origins {
 public:
  Origins(const Model& before, const Model& after, VerifyResult& result)
      : before_(before),
        after_(after),
        result_(result),
        lineage_before_(plan::read_lineage(before.checkpoint.directory())),
        lineage_after_(plan::read_lineage(after.checkpoint.directory())) {}

  /// The model to compare with; none if only the content can be compared.
  std::unique_ptr<GrownModel> find() {
    const int64_t was = before_.config.num_experts, is = after_.config.num_experts;
    if (is < was) return undone();
    if (is == was) return copied();
    if (auto grown = recorded()) return grown;
    return result_.split > 1 && result_.problems.empty() ? split() : nullptr;
  }

  Maker maker;
  bool trained = false;      ///< the expansion happened during training: trainer.json belongs to a later step
  std::string other_digest;  ///< the message if the lineage records another model than `before`

 private:
  template <class Make>
  std::unique_ptr<GrownModel> tried(const Make& make) {
    try {
      return std::make_unique<GrownModel>(before_, make());
    } catch (const Error& error) {
      const bool about_models = error.code == ErrorCode::kUsage || error.code == ErrorCode::kUnsupported ||
                                error.code == ErrorCode::kFormat || error.code == ErrorCode::kShape;
      if (!about_models) throw;
      result_.problems.emplace_back(error.what());
      return nullptr;
    }
  }

  std::unique_ptr<GrownModel> undone() {
    maker = {"undoing the newest expansion", true};
    auto made = tried([&] { return plan::undo_plan(before_.config, lineage_before_); });
    if (made) compare_with(plan::extend_lineage(lineage_before_, made->plan, {}, {}), false);
    return made;
  }

  std::unique_ptr<GrownModel> copied() {
    maker = {"an unchanged copy", false};
    if (lineage_before_ && !lineage_after_) {
      result_.not_compared.push_back(cat(io::kLineageFile, ", which is missing afterwards"));
    } else if (lineage_before_ || lineage_after_) {
      compare_with(lineage_before_ ? *lineage_before_ : no_lineage(), false);
    }
    return tried([&] { return grow::unchanged_plan(before_); });
  }

  /// The expansion that the lineage of `after` records, if it can lead from `before` to `after`. The comparison of
  /// tensors decides, not the recorded digest.
  std::unique_ptr<GrownModel> recorded() {
    if (!lineage_after_) {
      if (lineage_before_) result_.not_compared.push_back(cat(io::kLineageFile, ", which is missing afterwards"));
      return nullptr;
    }
    const auto growth = plan::newest_growth(*lineage_after_);
    if (!growth) {
      result_.not_compared.push_back(cat(io::kLineageFile, ", whose newest step is not an expansion"));
      return nullptr;
    }
    const std::string digest = before_.digest();
    const bool fits = growth->plan.experts_before == before_.config.num_experts &&
                      growth->plan.experts_after == after_.config.num_experts;
    if (growth->source_digest != digest && !fits) {
      result_.not_compared.push_back(cat(io::kLineageFile, ", whose newest expansion started from another model"));
      return nullptr;
    }
    if (growth->source_digest != digest)
      other_digest =
          cat("the digest in ", io::kLineageFile, ", which says that the newest expansion started from another model");
    maker = {cat("the expansion in ", io::kLineageFile), true};
    trained = growth->command == "train";
    auto made = tried([&] { return plan::growth_of(before_.config, *growth); });
    if (made) compare_with(wanted_lineage(made->plan, growth->command, growth->source_digest), true);
    return made;
  }

  /// The expected lineage; with the earlier steps of `after` if `before` has no lineage.
  Json wanted_lineage(const plan::GrowthPlan& plan, std::string_view command, std::string_view digest) {
    std::optional<Json> start = lineage_before_;
    Json::Array steps = lineage_after_->at("steps").items();
    steps.pop_back();
    if (!start && !steps.empty()) {
      result_.not_compared.push_back(
          cat("the earlier steps of ", io::kLineageFile, ", which the model before does not have"));
      start = no_lineage();
      (*start)["steps"] = Json::array(std::move(steps));
    }
    return plan::extend_lineage(start, plan, command, digest);
  }

  /// Parts of an expert cannot be recognised by comparing them with a whole one, so both orders of children are
  /// computed and compared.
  std::unique_ptr<GrownModel> split() {
    maker = {"a split", false};
    const auto in_order = [this](const char* order) {
      return tried([&] {
        plan::GrowthOptions options;
        options.split = result_.split;
        options.order = order;
        return plan::make_plan(before_.config, options, nullptr);
      });
    };
    auto siblings = in_order("siblings");
    if (!siblings || has_router_of(*siblings, before_, after_)) return siblings;
    return in_order("append");
  }

  static Json no_lineage() { return Json::object({{"coppice_lineage", Json(1)}, {"steps", Json::array()}}); }

  /// A model without a lineage counts as one without steps.
  void compare_with(const Json& wanted, bool grown) {
    LineageDifferences found = compare_lineages(wanted, lineage_after_ ? *lineage_after_ : no_lineage(), grown);
    std::ranges::move(found.problems, std::back_inserter(result_.problems));
    std::ranges::move(found.not_compared, std::back_inserter(result_.not_compared));
  }

  const Model& before_;
  const Model& after_;
  VerifyResult& result_;
  std::optional<Json> lineage_before_, lineage_after_;
};

/// The factor of top-K, if an expansion can have made it.
int64_t top_k_factor(const ModelConfig& before, const ModelConfig& after) {
  const int64_t factor = before.top_k > 0 ? after.top_k / before.top_k : 1;
  const bool scaled =
      factor > 1 && after.top_k == factor * before.top_k && after.num_experts == factor * before.num_experts;
  return scaled ? factor : 1;
}

/// The number of parts into which `after` cuts each expert of `before`, from width and number of experts; 1 if it does
/// not.
int64_t split_parts(const ModelConfig& before, const ModelConfig& after) {
  if (after.expert_width <= 0 || after.expert_width >= before.expert_width) return 1;
  const int64_t parts = before.expert_width / after.expert_width;
  const bool whole = parts * after.expert_width == before.expert_width;
  return whole && after.num_experts == parts * before.num_experts ? parts : 1;
}

/// The expanded model's configuration, completed by what the weights of the model before showed.
ModelConfig completed(ModelConfig config, const ModelConfig& before, int64_t split) {
  if (!config.placed_by_weights()) return config;
  config.num_layers = before.num_layers;
  config.moe_layer = before.moe_layer;
  config.expert_width = before.expert_width / split;
  config.routing.has_selection_bias = before.routing.has_selection_bias;
  config.routing.has_router_bias = before.routing.has_router_bias;
  return config;
}

void check_config(const Json& wanted, int64_t split, const Model& before, const Model& after, VerifyResult& result) {
  ConfigDifferences found;
  try {
    const auto config = families::read_config(wanted, "config.json of the recomputed model", before.config.family);
    found = compare_configs(completed(config, before.config, split), after.config);
  } catch (const Error& error) {  // the family cannot express this expansion
    result.problems.emplace_back(error.what());
    return;
  }
  std::ranges::move(found.problems, std::back_inserter(result.problems));
  std::ranges::move(found.not_compared("config.json"), std::back_inserter(result.not_compared));
}

/// The expected config.json of an expansion that is known only by its result.
Json config_by_content(const ModelConfig& before, const ModelConfig& after, const VerifyResult& result) {
  plan::GrowthPlan plan;
  plan.experts_before = before.num_experts;
  plan.experts_after = after.num_experts;
  plan.top_k_factor = result.top_k_factor;
  plan.split = result.split;
  return plan::grown_config(before, plan);
}

/// Metadata describes quantised tensors; of other models it means nothing.
void check_metadata(const GrownModel& made, const Model& after, VerifyResult& result) {
  if (!after.config.is_quantised()) return;
  const auto found = grow::metadata_of(after.checkpoint);
  std::vector<std::string> wrong;
  for (const auto& [key, value] : made.metadata) {
    const auto at = found.find(key);
    if (key != "format" && (at == found.end() || at->second != value)) wrong.push_back(key);
  }
  constexpr size_t kListed = 5;
  if (!wrong.empty()) {
    result.problems.push_back(
        cat("metadata of the weights: ", wrong.size(), " entries differ or are missing: ", join_some(wrong, kListed)));
  }
}

void check_trainer_file(const Model& before, const Model& after, VerifyResult& result) {
  const auto at = [](const Model& model) {
    return model.checkpoint.directory() / io::kTrainerFolder / io::kTrainerFile;
  };
  if (!std::filesystem::exists(at(after))) return;  // reported with the optimizer state
  if (sha256_of_file(at(before)) == sha256_of_file(at(after))) {
    ++result.files_equal;
  } else {
    result.problems.push_back(
        cat("'", io::kTrainerFolder, "/", io::kTrainerFile, "': changed, but an expansion copies it"));
  }
}

void check_files(const Model& before, const Model& after, bool complete, VerifyResult& result) {
  FileResult files = compare_files(before, after, complete);
  result.files_equal += files.equal;
  std::ranges::move(files.problems, std::back_inserter(result.problems));
  std::ranges::move(files.not_compared, std::back_inserter(result.not_compared));
}

/// Adds a hint if most tensors differ, as after training.
void add_hint(VerifyResult& result) {
  const int64_t all = result.tensors_changed + result.identical;
  if (result.tensors_changed > 1 && 2 * result.identical < all) {
    result.problems.push_back(cat(result.tensors_changed, " tensors differ from what ", result.made_by,
                                  " computes, and ", result.identical,
                                  " outside experts and routers are equal (a model that was trained after the "
                                  "expansion cannot be verified; verify it as the expansion wrote it)"));
  }
}

}  // namespace

Model as_expanded(Model before, const Model& after) {
  const auto lineage = plan::read_lineage(after.checkpoint.directory());
  const auto growth = lineage ? plan::newest_growth(*lineage) : std::nullopt;
  const bool was_dequantised = growth && growth->dequantizes && before.config.is_quantised();
  return was_dequantised ? grow::dequantised(std::move(before)) : std::move(before);
}

VerifyResult verify(const Model& before, const Model& after, size_t threads) {
  VerifyResult result;
  result.quantisation =
      before.stored ? cat(before.stored->quantisation, ", dequantised to bf16") : before.config.quantisation;
  result.experts_before = before.config.num_experts;
  result.experts_after = after.config.num_experts;
  if (before.config.family->model_type != after.config.family->model_type) {
    result.problems = compare_configs(before.config, after.config).problems;
    return result;
  }
  result.top_k_factor = top_k_factor(before.config, after.config);
  result.split = split_parts(before.config, after.config);
  Origins origins(before, after, result);
  const auto made = origins.find();
  Progress progress("verify", after.checkpoint.total_bytes(), ProgressUnit::kBytes);
  if (made) {
    result.made_by = origins.maker.name;
    result.top_k_factor = made->plan.is_undo ? 1 : made->plan.top_k_factor;
    result.split = made->plan.split;
    check_config(made->config, made->plan.split, before, after, result);
    check_metadata(*made, after, result);
    if (made->plan.experts_after == after.config.num_experts) {
      compare_made(*made, before, after, origins.maker, threads, progress, result);
      if (made->optimizer && !origins.trained) check_trainer_file(before, after, result);
      if (made->optimizer && origins.trained)
        result.not_compared.push_back(cat(io::kTrainerFolder, "/", io::kTrainerFile, ", which every run writes again"));
    }
    add_hint(result);
  } else if (result.problems.empty()) {
    check_config(config_by_content(before.config, after.config, result), 1, before, after, result);
    verify_by_content(before, after, threads, progress, result);
  }
  check_files(before, after, origins.maker.complete, result);
  if (!origins.other_digest.empty()) {
    (result.problems.empty() ? result.not_compared : result.problems).push_back(origins.other_digest);
  }
  result.ok = result.problems.empty() && result.not_recognised.empty();
  return result;
}

std::string verdict_of(const std::vector<std::string>& problems, const std::vector<std::string>& not_compared) {
  if (!problems.empty()) return cat("failed: ", problems.size(), problems.size() == 1 ? " problem" : " problems");
  const std::string ok = "ok: every tensor is accounted for";
  return not_compared.empty() ? ok : cat(ok, "; not compared: ", join(not_compared, "; "));
}

std::string VerifyResult::verdict() const {
  if (!problems.empty() || not_recognised.empty()) return verdict_of(problems, not_compared);
  std::vector<std::string> parts;
  if (unknown_experts > 0) parts.push_back(cat(unknown_experts, unknown_experts == 1 ? " expert" : " experts"));
  if (unknown_rows > 0) parts.push_back(cat(unknown_rows, unknown_rows == 1 ? " router row" : " router rows"));
  return cat("not verified: ", join(parts, " and "),
             " cannot be recognised by content (their values are not similar to any ", "original; with the ",
             io::kLineageFile, " of the expansion, verify can recompute them)");
}

Json VerifyResult::to_json() const {
  Json json = Json::object();
  json["ok"] = ok;
  json["quantisation"] = quantisation.empty() ? Json() : Json(quantisation);
  json["made_by"] = made_by;
  json["identical"] = identical;
  json["experts"] = Json::array({Json(experts_before), Json(experts_after)});
  json["top_k_factor"] = Json(top_k_factor);
  json["split"] = Json(split);
  json["experts_original"] = experts_original;
  json["experts_changed"] = experts_changed;
  constexpr const char* kKinds[] = {"equal", "columns", "rows", "reordered", "values"};
  Json& copies = json["copies_recognised_by"] = Json::object();
  for (size_t i = 0; i < copies_by_likeness.size(); ++i) copies[kKinds[i]] = copies_by_likeness[i];
  json["smallest_cosine"] = smallest_cosine;
  json["router_rows_equal"] = router_rows_equal;
  json["router_rows_changed"] = router_rows_changed;
  json["biases_changed"] = biases_changed;
  json["largest_bias_change"] = largest_bias_change;
  json["optimizer_tensors"] = optimizer_tensors;
  json["files_equal"] = files_equal;
  json["parents"] = Json::object();
  for (const auto& [layer, of_layer] : parents) json["parents"][std::to_string(layer)] = Json::array_of(of_layer);
  json["only_alike"] = Json::object({{"matrices", Json(only_alike.matrices)},
                                     {"column_orders", Json(only_alike.column_orders)},
                                     {"router_rows", Json(only_alike.router_rows)},
                                     {"biases", Json(only_alike.biases)}});
  json["not_recognised"] = Json::array_of(not_recognised);
  json["not_compared"] = Json::array_of(not_compared);
  json["problems"] = Json::array_of(problems);
  return json;
}

}  // namespace coppice::verify
