#include <cmath>
#include <iostream>
#include <memory>
#include <optional>
#include <vector>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/cli/command.h"
#include "coppice/cli/device.h"
#include "coppice/cli/ranks.h"
#include "coppice/cli/threads.h"
#include "coppice/data/token_file.h"
#include "coppice/data/tokenizer.h"
#include "coppice/eval/agreement.h"
#include "coppice/eval/multiple_choice.h"
#include "coppice/eval/perplexity.h"
#include "coppice/nn/decoder.h"
#include "coppice/nn/device_memory.h"
#include "coppice/options/byte_count.h"
#include "coppice/options/options.h"
#include "coppice/plan/lineage.h"
#include "coppice/report/html.h"
#include "coppice/train/handover.h"

namespace coppice::cli {
namespace {

constexpr std::string_view kSummary =
    "measure loss on token files, agreement with another model, multiple-choice accuracy";

struct EvalOptions {
  std::filesystem::path model;
  std::vector<std::filesystem::path> tokens, tasks;
  std::optional<std::filesystem::path> against;
  int64_t sequence_length = 256, batch = 8;
  uint64_t max_tokens = 0;
  std::string dtype = "f32", device{kAutoDevice};
  std::optional<ByteCount> max_memory;
  int64_t expert_parallel = 1;
  std::optional<uint64_t> threads;
  bool reset_attention = false, json = false;
  Given given;

  static constexpr auto fields() {
    using O = EvalOptions;
    return std::tuple{
        operand("MODEL", &O::model, "model directory in Hugging Face format"),
        field("tokens", &O::tokens,
              "token files (prefixes of .bin/.idx pairs); repeat the option or separate by commas"),
        field("tasks", &O::tasks,
              "multiple-choice questions, JSON lines {\"context\", \"choices\", \"answer\"}; repeat the option or "
              "separate by commas"),
        field("against", &O::against, "another model; compare its predictions on the same tokens"),
        field("sequence-length", &O::sequence_length, "tokens per window; prediction uses only its own window"),
        field("reset-attention", &O::reset_attention, "attention stays within a document, and positions restart at 0"),
        field("batch", &O::batch, "windows per forward pass"),
        field("max-tokens", &O::max_tokens, "number of tokens used of each file; 0: all"),
        field("dtype", &O::dtype, "dtype of the computation: f32 or bf16"),
        field("device", &O::device, kDeviceHelp),
        field("max-memory", &O::max_memory,
              "most memory for weights and activations, such as 8GiB; a model that does not fit is loaded a few layers "
              "at a time (default: half of the device's)"),
        field(
            "expert-parallel", &O::expert_parallel,
            "under torchrun, srun or mpirun: number of ranks that share the experts of each layer; divides the number "
            "of ranks"),
        field("threads", &O::threads, "CPU threads (default: all cores)"),
        field("json", &O::json, kJsonHelp)};
  }

  eval::LossSettings loss_settings() const { return {sequence_length, batch, max_tokens, reset_attention}; }
};

struct FileLoss {
  std::string name;
  eval::TokenLoss loss;
  std::optional<double> bits_per_byte;
  std::optional<double> by_lineage;  // nats, routed as in training
  std::optional<eval::Agreement> agreement;
};

struct TaskResult {
  std::string name;
  eval::Choices choices;
};

struct Results {
  std::vector<FileLoss> files;
  std::vector<TaskResult> tasks;
};

void check(const EvalOptions& o, const families::Model& model) {
  const auto refuse = [](const std::string& message) { throw Error(ErrorCode::kUsage, message); };
  if (o.tokens.empty() && o.tasks.empty()) {
    refuse("tokens, tasks: neither is given; wanted token files (make them with `coppice tokenize`) or questions");
  }
  refuse_without_effect(o.given, {{o.tokens.empty(),
                                   "no token files are given",
                                   {"against", "sequence-length", "reset-attention", "batch", "max-tokens"}}});
  (void)nn::compute_dtype(o.dtype);
  if (o.batch < 1) refuse(cat("batch: ", o.batch, "; wanted 1 or more"));
  if (!o.tokens.empty() && (o.sequence_length < 1 || o.sequence_length > model.config.max_positions)) {
    refuse(cat("sequence-length: ", o.sequence_length, "; wanted 1 to the model's ", model.config.max_positions));
  }
}

nn::FittedDecoder fit(const EvalOptions& o, const families::Model& model, at::Device device, const Ranks& ranks) {
  // The limit is for both models together.
  const uint64_t bytes = o.max_memory ? o.max_memory->bytes : nn::memory_of(device).total / 2;
  return {model, nn::compute_dtype(o.dtype), o.against ? bytes / 2 : bytes, device,
          nn::divide(ranks.world, model.config)};
}

void compare(const EvalOptions& o, const nn::FittedDecoder& decoder, at::Device device,
             const std::vector<data::TokenFile>& files, const Ranks& ranks, Results& results) {
  const auto model = families::open_model(*o.against);
  const auto other = fit(o, model, device, ranks);
  for (size_t i = 0; i < files.size(); ++i) {
    results.files[i].agreement = eval::agreement(decoder, other, files[i], o.loss_settings());
  }
}

// The lineage-unique routing with which the model was being trained, if its handover is not complete; it applies to the
// same tokens. Otherwise null.
std::shared_ptr<const nn::LineageRouting> routing_of_training(const std::filesystem::path& model) {
  const auto lineage = plan::read_lineage(model);
  if (!lineage) return nullptr;
  const auto note = plan::noted_lineage_share(*lineage);
  if (note.share > 0 && !note.seed) {
    log_warning(cat(model, ": ", io::kLineageFile,
                    " does not record the seed that selects the tokens with lineage-unique routing ",
                    "(coppice 0.1.0 wrote it); seed 0 is used for the lineage-unique loss"));
  }
  return train::lineage_routing(lineage, note.share, note.seed.value_or(0));
}

Results evaluate(const EvalOptions& o, const Ranks& ranks) {
  const auto model = families::open_model(o.model);
  check(o, model);
  const auto device = use_device(o.device);
  const auto files = data::open_token_files(o.model, model.config.vocab_size, o.tokens);
  std::vector<std::vector<eval::Question>> tasks;
  for (const auto& path : o.tasks) tasks.push_back(eval::read_questions(path));
  const auto decoder = fit(o, model, device, ranks);
  auto by_lineage = o.loss_settings();
  by_lineage.lineage = routing_of_training(o.model);
  Results out;
  for (const auto& file : files) {
    const auto loss = eval::token_loss(decoder, file, o.loss_settings());
    out.files.push_back(
        {.name = file.path().filename().string(), .loss = loss, .bits_per_byte = loss.bits_per_byte(file)});
    if (by_lineage.lineage) out.files.back().by_lineage = eval::token_loss(decoder, file, by_lineage).loss;
  }
  if (o.against) compare(o, decoder, device, files, ranks, out);
  if (tasks.empty()) return out;
  const auto tokenizer = data::open_tokenizer(o.model);
  const auto leading = eval::leading_token(o.model);
  for (size_t i = 0; i < tasks.size(); ++i) {
    out.tasks.push_back({o.tasks[i].stem().string(), eval::answer(decoder, *tokenizer, leading, tasks[i])});
  }
  return out;
}

// The mean over all tokens of all files.
eval::TokenLoss overall(const std::vector<FileLoss>& files) {
  eval::TokenLoss out;
  for (const auto& file : files) {
    out.loss += file.loss.loss * static_cast<double>(file.loss.tokens);
    out.tokens += file.loss.tokens;
  }
  out.loss /= static_cast<double>(out.tokens);
  return out;
}

Json to_json(const eval::TokenLoss& loss) {
  Json out = Json::object();
  out["loss"] = loss.loss;
  out["perplexity"] = loss.perplexity();
  out["tokens"] = loss.tokens;
  return out;
}

Json to_json(const FileLoss& file) {
  Json out = Json::object({{"name", Json(file.name)}});
  const Json numbers = to_json(file.loss);
  for (const auto& [key, value] : numbers.members()) out[key] = value;
  if (std::isfinite(file.loss.loss_variance)) out["standard_error"] = std::sqrt(file.loss.loss_variance);
  if (file.bits_per_byte) out["bits_per_byte"] = *file.bits_per_byte;
  if (file.by_lineage) out["loss_by_lineage"] = *file.by_lineage;
  if (file.agreement) {
    out["kl"] = file.agreement->kl;
    out["top_1_agreement"] = file.agreement->top_1;
  }
  return out;
}

Json to_json(const TaskResult& task) {
  const auto& c = task.choices;
  Json out = Json::object({{"name", Json(task.name)}});
  out["accuracy"] = c.accuracy;
  out["normalised_accuracy"] = c.normalised_accuracy;
  out["questions"] = c.questions;
  if (c.questions > 1) {
    out["accuracy_standard_error"] = c.standard_error(c.accuracy);
    out["normalised_accuracy_standard_error"] = c.standard_error(c.normalised_accuracy);
  }
  Json likelihoods = Json::array();
  for (const auto& question : c.log_likelihoods) likelihoods.push_back(Json::array_of(question));
  out["log_likelihoods"] = std::move(likelihoods);
  return out;
}

Json to_json(const Results& results) {
  Json out = results.files.empty() ? Json::object() : to_json(overall(results.files));
  for (const auto& file : results.files) out["files"].push_back(to_json(file));
  for (const auto& task : results.tasks) out["tasks"].push_back(to_json(task));
  return out;
}

void print_files(const EvalOptions& o, const std::vector<FileLoss>& files) {
  report::Table table{.header = {"tokens of", "loss (nats)", "perplexity", "bits/byte", "tokens"}, .rows = {}};
  if (files.front().by_lineage) table.header.emplace_back("lineage-unique (nats)");
  if (o.against) table.header.insert(table.header.end(), {"KL (nats)", "same top-1"});
  for (const auto& file : files) {
    table.rows.push_back({file.name, fixed_text(file.loss.loss, 4), number_text(file.loss.perplexity()),
                          file.bits_per_byte ? fixed_text(*file.bits_per_byte, 4) : "-", cat(file.loss.tokens)});
    if (file.by_lineage) table.rows.back().push_back(fixed_text(*file.by_lineage, 4));
    if (!file.agreement) continue;
    table.rows.back().push_back(number_text(file.agreement->kl));
    table.rows.back().push_back(percent(file.agreement->top_1, 2));
  }
  if (files.size() > 1) {
    const auto all = overall(files);
    table.rows.push_back({"all", fixed_text(all.loss, 4), number_text(all.perplexity()), "", cat(all.tokens)});
    table.rows.back().resize(table.header.size());
  }
  std::cout << report::text_table(table);
}

void print_tasks(const std::vector<TaskResult>& tasks) {
  report::Table table{.header = {"task", "accuracy", "normalised", "questions"}, .rows = {}};
  for (const auto& [name, c] : tasks) {
    const auto share = [&](double value) {
      return c.questions > 1 ? cat(fixed_text(value, 4), " +- ", fixed_text(c.standard_error(value), 4))
                             : fixed_text(value, 4);
    };
    table.rows.push_back({name, share(c.accuracy), share(c.normalised_accuracy), cat(c.questions)});
  }
  std::cout << report::text_table(table);
}

void print(const EvalOptions& o, const Results& results) {
  if (o.json) {
    std::cout << to_json(results).dump(2) << "\n";
    return;
  }
  if (!results.files.empty()) print_files(o, results.files);
  if (!results.files.empty() && !results.tasks.empty()) std::cout << "\n";
  if (!results.tasks.empty()) print_tasks(results.tasks);
}

int run(std::span<const std::string_view> args) {
  const auto options = parse<EvalOptions>("eval", kSummary, args);
  on_ranks(options, options.expert_parallel, args, [](const EvalOptions& o, const Ranks& ranks) {
    use_threads(o.threads);
    const auto results = evaluate(o, ranks);
    if (ranks.is_first()) print(o, results);
  });
  return 0;
}

}  // namespace

extern const Command kEval;
const Command kEval{"eval", kSummary, run};

}  // namespace coppice::cli
