#include "coppice/train/start.h"

#include <algorithm>
#include <array>

#include "coppice/base/error.h"
#include "coppice/base/log.h"
#include "coppice/base/text.h"
#include "coppice/data/tokenizer.h"
#include "coppice/io/model_directory.h"
#include "coppice/models/generate.h"
#include "coppice/plan/lineage.h"
#include "coppice/step/balance.h"
#include "coppice/step/divided_state.h"

namespace coppice::train {
namespace {

namespace fs = std::filesystem;
using World = std::shared_ptr<dist::World>;

constexpr double kInitStd = 0.02;
constexpr int64_t kLeastPositions = 512;
constexpr auto kTokenizerFiles = std::to_array<std::string_view>(
    {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
     "vocab.json", "merges.txt", "chat_template.jinja"});
constexpr std::string_view kGenerationConfig = "generation_config.json";

void add_file(std::map<std::string, std::string>& out, const io::ModelDirectory& files, std::string_view name) {
  if (files.has(name)) out[std::string(name)] = files.read(name);
}

std::map<std::string, std::string> tokenizer_files(const fs::path& directory) {
  std::map<std::string, std::string> out;
  if (!fs::is_directory(directory)) return out;
  const io::ModelDirectory files(directory);
  for (const auto name : kTokenizerFiles) add_file(out, files, name);
  return out;
}

// Kept in memory, because the directory may be a checkpoint that this run will remove.
save::Companions companions_of(const fs::path& model, const fs::path& tokenizer) {
  save::Companions out;
  out.files = tokenizer_files(tokenizer.empty() ? model : tokenizer);
  if (!tokenizer.empty() && out.files.empty()) {
    throw Error(ErrorCode::kNotFound,
                cat("model.tokenizer: ", tokenizer, " has no tokenizer; wanted one of ",
                    join(std::vector<std::string>(kTokenizerFiles.begin(), kTokenizerFiles.end()))));
  }
  if (!model.empty()) {
    add_file(out.files, io::ModelDirectory(model), kGenerationConfig);
    out.lineage = plan::read_lineage(model);
  }
  return out;
}

// How a model with this coppice.json is divided.
nn::Division division_of(const World& world, const families::ModelConfig& config, const std::optional<Json>& lineage) {
  using Parents = std::map<int64_t, std::vector<uint32_t>>;
  return nn::divide(world, config, lineage ? plan::newest_parents(*lineage).value_or(Parents{}) : Parents{});
}

nn::Decoder random_model(const TrainOptions& o, at::Device device, const World& world) {
  const models::ModelSizes sizes{.family = o.model_family,
                                 .vocab_size = o.vocab_size,
                                 .model_dim = o.model_dim,
                                 .num_layers = o.num_layers,
                                 .num_heads = o.num_heads,
                                 .num_kv_heads = o.num_kv_heads,
                                 .head_dim = o.head_dim,
                                 .num_experts = o.num_experts,
                                 .top_k = o.top_k,
                                 .expert_width = o.expert_width,
                                 .dense_width = o.dense_width,
                                 .shared_width = o.shared_width,
                                 .first_dense_layers = o.first_dense_layers,
                                 .max_positions = std::max(kLeastPositions, o.sequence_length)};
  const auto dtype = nn::compute_dtype(o.dtype) == nn::ComputeDtype::kBf16 ? io::Dtype::kBf16 : io::Dtype::kF32;
  Json json = models::make_config(sizes, dtype);
  const std::string_view aux_key = families::family_of(o.model_family).aux_loss_key;
  if (json.find(aux_key) != nullptr) json[aux_key] = o.aux_coef.value_or(step::kAuxCoefficient);
  const auto config = families::read_config(json, "[model]");
  const nn::Division division = nn::divide(world, config, {});
  return {config,
          nn::compute_dtype(o.dtype),
          [&](const families::TensorSlot& slot, std::span<float> values) {
            const bool is_part = slot.expert >= 0 && slot.rule->layout.stacked;
            const auto random = models::random_values(slot, o.seed, kInitStd);
            const std::span<const float> all(random);
            std::ranges::copy(is_part ? nn::part_of(slot, all, config.num_experts) : all, values.begin());
          },
          device,
          division,
          step::keep_masters(division)};
}

Start from_checkpoint(const TrainOptions& options, const fs::path& directory, const save::TrainerState& state,
                      at::Device device, const World& world) {
  const auto model = families::open_model(directory);
  auto [decoder, optimizer] = save::load_checkpoint(model, nn::compute_dtype(options.dtype), device,
                                                    division_of(world, model.config, plan::read_lineage(directory)));
  return {std::move(decoder), std::move(optimizer), state.position, {}, {}, {}};
}

/// Converts the position of a checkpoint to windows of this run's length, after the same number of tokens.
///
/// Throws   Error{kFormat} if trainer.json does not record the length of its windows.
void count_windows_anew(step::Position& position, const TrainOptions& options, const save::TrainerState& state) {
  constexpr std::string_view kKey = "data.sequence_length";
  const Json* const found = state.settings.find(kKey);
  if (found == nullptr || found->as_int() < 1) {
    throw Error(ErrorCode::kFormat,
                cat(options.model_path, ": trainer.json: 'settings' has ", found == nullptr ? "no " : "a bad ", kKey,
                    "; wanted the number of tokens per window ", "(use train.start=fresh to read only the weights)"));
  }
  const auto before = static_cast<uint64_t>(found->as_int()), now = static_cast<uint64_t>(options.sequence_length);
  if (before == now) return;
  const uint64_t windows = position.next_sample;
  position.next_sample = windows / now * before + (windows % now * before + now - 1) / now;
  log_warning(cat("train.start: the checkpoint has read ", windows, " windows of ", before,
                  " tokens; this run continues at window ", position.next_sample, " of ", now,
                  " tokens, after the same number of tokens. Windows of another length come in another order, so some "
                  "text is repeated and some comes later"));
}

Start continued(const TrainOptions& options, at::Device device, const World& world) {
  const auto state = save::TrainerState::read(options.model_path);
  Start start = from_checkpoint(options, options.model_path, state, device, world);
  count_windows_anew(start.position, options, state);
  return start;
}

Start from_nothing(nn::Decoder model) {
  step::Optimizer optimizer(model.parameters(), model.division());
  return {std::move(model), std::move(optimizer), {}, {}, {}, {}};
}

Start with_weights(const TrainOptions& options, at::Device device, const World& world,
                   const std::optional<Json>& lineage) {
  const auto model = families::open_model(options.model_path);
  const nn::Division division = division_of(world, model.config, lineage);
  return from_nothing(
      nn::Decoder::load(model, nn::compute_dtype(options.dtype), device, division, step::keep_masters(division)));
}

// The moments are in f32.
Start start_of(const TrainOptions& options, const std::optional<fs::path>& resume_from, at::Device device,
               const World& world) {
  if (resume_from) {
    save::TrainerState state = save::TrainerState::read(*resume_from);
    Start start = from_checkpoint(options, *resume_from, state, device, world);
    start.companions = companions_of(*resume_from, {});
    start.tokenizer_digest = data::tokenizer_digest(*resume_from);
    start.resumed = std::move(state);
    return start;
  }
  save::Companions companions = companions_of(options.model_path, options.tokenizer);
  const fs::path tokenizer = options.tokenizer.empty() ? options.model_path : options.tokenizer;
  Start start = options.model_path.empty()    ? from_nothing(random_model(options, device, world))
                : options.start == "continue" ? continued(options, device, world)
                                              : with_weights(options, device, world, companions.lineage);
  start.companions = std::move(companions);
  if (!tokenizer.empty()) start.tokenizer_digest = data::tokenizer_digest(tokenizer);
  return start;
}

}  // namespace

Start make_start(const TrainOptions& options, const std::optional<fs::path>& resume_from, at::Device device,
                 const std::shared_ptr<dist::World>& world) {
  Start start = start_of(options, resume_from, device, world);
  start.optimizer.set_moment_dtype(options.moments == "bf16" ? at::kBFloat16 : at::kFloat);
  return start;
}

}  // namespace coppice::train
