#pragma once

// One run file. A field "optimizer.lr" is the flag --optimizer.lr and the key lr of [optimizer].

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "coppice/options/device_option.h"
#include "coppice/options/options.h"

namespace coppice::train {

struct TrainOptions {
  // [model]: a model directory, or a family and its sizes (random weights from train.seed)
  std::filesystem::path model_path;
  std::string model_family = "glm4_moe";
  int64_t vocab_size = 2048, model_dim = 128, num_layers = 4, num_heads = 4, num_kv_heads = 2, head_dim = 32;
  int64_t num_experts = 8, top_k = 2, expert_width = 128, dense_width = 256, shared_width = 0, first_dense_layers = 1;
  /// Directory whose tokenizer files are copied into every checkpoint (default: model.path).
  std::filesystem::path tokenizer;

  // [data]
  std::vector<std::filesystem::path> data_train, data_validation;
  std::vector<double> data_weights;
  int64_t sequence_length = 256;
  bool random_tokens = false, reset_attention = false;

  // [train]
  std::filesystem::path out;    ///< empty: write nothing
  std::string start = "fresh";  ///< model.path's weights only, step 0 ("fresh"); or its trainer state, step and data
                                ///< position too ("continue")
  bool resume = false;          ///< continue from the newest checkpoint in `out`
  uint64_t seed = 0;
  int64_t steps = 0;                ///< length of the whole schedule in steps, or ...
  int64_t tokens = 0;               ///< ... in tokens
  int64_t stop_at = 0;              ///< stop (and checkpoint) after this step without annealing; 0 = run to the end
  int64_t batch_tokens = 8192;      ///< per optimizer step
  int64_t micro_batch = 8;          ///< sequences per forward pass
  std::string dtype = "bf16";       ///< dtype of the computation: bf16 or f32
  std::string device{kAutoDevice};  ///< nn::compute_device
  int64_t threads = 0;              ///< 0: all cores
  bool recompute = false;
  int64_t validate_every = 0;
  int64_t validation_tokens = 65536;

  // [optimizer]
  double lr = 1e-3, beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1, clip = 1.0;
  double spike_limit = 0;
  std::string moments = "f32";  ///< or bf16

  // [schedule]
  std::string schedule = "wsd";  ///< wsd, cosine or constant
  int64_t warmup = -1;           ///< steps; -1: 100, or a tenth of a shorter run
  double anneal_share = 0.1;     ///< share of a wsd schedule, at its end, in which the rate falls
  double min_lr_ratio = 0.1;

  // [balance]
  std::string balance =
      "auto";  ///< auto (loss_free where the family has a selection bias, else aux), loss_free, aux, none
  double balance_rate = 1e-3, z_coef = 0;
  std::optional<double> aux_coef;          ///< empty: from the model's config.json, else 0.01 (train::aux_coefficient)
  std::string balance_form = "per_layer";  ///< of the auxiliary loss: per_layer or transformers
  bool recentre = false;
  int64_t dead_after = 100;

  // [[growth]] and [handover]
  Json growth;  ///< tables of growth_stage.h
  std::string handover = "none";
  int64_t handover_steps = 0;

  // [parallel]
  int64_t expert_parallel = 1;
  double parallel_timeout = 600;

  // [checkpoint]
  int64_t checkpoint_every = 0, keep_last = 2, keep_every = 0;
  bool checkpoint_beside = true;

  Given given;

  static constexpr auto fields() {
    using O = TrainOptions;
    return std::tuple{
        field("model.path", &O::model_path, "model directory to start from; empty: random weights of model.family"),
        field("model.family", &O::model_family,
              "family of a new model with random weights; see `coppice list families`"),
        field("model.vocab_size", &O::vocab_size, "size of the vocabulary"),
        field("model.dim", &O::model_dim, "model dimension"),
        field("model.layers", &O::num_layers, "number of decoder layers"),
        field("model.heads", &O::num_heads, "number of query heads"),
        field("model.kv_heads", &O::num_kv_heads, "number of key-value heads"),
        field("model.head_dim", &O::head_dim, "dimensions per head"),
        field("model.experts", &O::num_experts, "experts per layer"),
        field("model.top_k", &O::top_k, "experts per token"),
        field("model.expert_width", &O::expert_width, "intermediate width of an expert"),
        field("model.dense_width", &O::dense_width, "intermediate width of a dense layer"),
        field("model.shared_width", &O::shared_width, "intermediate width of the shared expert; 0: none"),
        field("model.first_dense_layers", &O::first_dense_layers,
              "number of dense layers before the first layer with experts"),
        field("model.tokenizer", &O::tokenizer,
              "directory whose tokenizer files are copied into the checkpoints (default: model.path)"),
        field("data.train", &O::data_train, "token files to train on (prefixes of .bin/.idx pairs)"),
        field("data.validation", &O::data_validation,
              "token files for the validation loss (prefixes of .bin/.idx pairs)"),
        field("data.weights", &O::data_weights,
              "sampling weight of each training file (default: its number of tokens)"),
        field("data.random", &O::random_tokens, "train on uniformly random tokens instead of files, to measure speed"),
        field("data.sequence_length", &O::sequence_length, "tokens per sequence"),
        field("data.reset_attention", &O::reset_attention,
              "attention stays within a document, and positions restart at 0; the last token of a document still "
              "predicts the first of the next"),
        field("train.out", &O::out, "directory of this run; empty: write nothing"),
        field("train.start", &O::start,
              "fresh: read only the weights of model.path; continue: also its optimizer state, step and position in "
              "the data"),
        field("train.resume", &O::resume, "continue from the newest checkpoint in train.out"),
        field("train.seed", &O::seed, "random seed of initial weights and data order"),
        field("train.steps", &O::steps, "length of the whole schedule in optimizer steps"),
        field("train.tokens", &O::tokens, "length of the whole schedule in tokens; give this or train.steps"),
        field("train.stop_at", &O::stop_at, "stop after this step, before the schedule ends"),
        field("train.batch_tokens", &O::batch_tokens, "tokens per optimizer step"),
        field("train.micro_batch", &O::micro_batch, "sequences per forward pass"),
        field("train.dtype", &O::dtype, "dtype of the computation: bf16 (with fp32 master weights) or f32"),
        field("train.device", &O::device, kDeviceHelp),
        field("train.threads", &O::threads, "CPU threads; 0: all cores"),
        field("train.recompute", &O::recompute, "recompute activations in the backward pass instead of keeping them"),
        field("train.validate_every", &O::validate_every, "steps between validations; 0: only at the end"),
        field("train.validation_tokens", &O::validation_tokens, "number of tokens used of each validation file"),
        field("optimizer.lr", &O::lr, "peak learning rate of AdamW"),
        field("optimizer.beta1", &O::beta1, "decay rate of the first moment"),
        field("optimizer.beta2", &O::beta2, "decay rate of the second moment"),
        field("optimizer.epsilon", &O::epsilon, "term added to the square root of the second moment"),
        field("optimizer.weight_decay", &O::weight_decay, "decoupled weight decay; applied to matrices only"),
        field("optimizer.clip", &O::clip, "gradient norm to clip to; 0: no clipping"),
        field("optimizer.moments", &O::moments, "dtype of AdamW's moments: f32, or bf16 (saves 4 bytes per parameter)"),
        field("optimizer.spike_limit", &O::spike_limit,
              "stop if the gradient norm is more than this many times its recent median; 0: never"),
        field("schedule.kind", &O::schedule,
              "learning-rate schedule: wsd (warm-up, stable, decay), cosine or constant"),
        field("schedule.warmup", &O::warmup,
              "steps of linear warm-up; -1: 100, or a tenth of a run of fewer than 1000 steps"),
        field("schedule.anneal_share", &O::anneal_share,
              "share of a wsd schedule, at its end, in which the rate falls"),
        field("schedule.min_lr_ratio", &O::min_lr_ratio, "final learning rate divided by the peak"),
        field("balance.kind", &O::balance,
              "load balancing: auto, loss_free (bias updates), aux (auxiliary loss) or none"),
        field("balance.rate", &O::balance_rate, "step size u of loss-free balancing"),
        field("balance.aux_coef", &O::aux_coef,
              "coefficient of the auxiliary loss (default: from the model's config.json, else 0.01)"),
        field("balance.form", &O::balance_form,
              "auxiliary loss per layer (per_layer), or of the layers' averages (transformers)"),
        field("balance.z_coef", &O::z_coef, "coefficient of the router z-loss"),
        field("balance.recentre", &O::recentre, "subtract the mean from the selection biases after each update"),
        field("balance.dead_after", &O::dead_after,
              "steps without a token after which an expert is reported as dead; 0: never"),
        field("growth", &O::growth, "[[growth]] tables: add experts during the run (docs/training.md)"),
        field(
            "handover.policy", &O::handover,
            "routing after an expansion: none, keep (lineage-unique top-K: at most one copy of each parent per token), "
            "release (lineage-unique top-K, then token by token plain top-K) or dormant (copies stay unused at first)"),
        field("handover.steps", &O::handover_steps,
              "steps until the release is complete, or until dormant copies are awake"),
        field("parallel.expert", &O::expert_parallel,
              "number of consecutive ranks that together hold all experts of a layer; must divide the number of ranks"),
        field("parallel.timeout", &O::parallel_timeout, "seconds after which a rank that does not answer ends the run"),
        field("checkpoint.every", &O::checkpoint_every, "steps between checkpoints; 0: only at the end"),
        field("checkpoint.keep_last", &O::keep_last, "number of newest checkpoints to keep"),
        field("checkpoint.keep_every", &O::keep_every, "also keep checkpoints at multiples of this step; 0: none"),
        field("checkpoint.beside", &O::checkpoint_beside,
              "write checkpoints while training continues, from a copy of the state in memory")};
  }
};

}  // namespace coppice::train
