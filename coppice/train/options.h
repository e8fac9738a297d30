#pragma once

// One run file. A field "optimizer.lr" is the flag --optimizer.lr and the key lr of [optimizer].

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "coppice/base/options.h"

namespace coppice::train {

struct TrainOptions {
  // [model]: a checkpoint, or a family and its sizes (random weights from train.seed)
  std::filesystem::path model_path;
  std::string model_family = "glm4_moe";
  int64_t vocab_size = 2048, model_dim = 128, num_layers = 4, num_heads = 4, num_kv_heads = 2, head_dim = 32;
  int64_t num_experts = 8, top_k = 2, expert_width = 128, dense_width = 256, shared_width = 0, first_dense_layers = 1;
  std::filesystem::path
      tokenizer;  ///< directory whose tokenizer files go into every checkpoint (default: model.path's)

  // [data]
  std::vector<std::filesystem::path> data_train, data_validation;
  std::vector<double> data_weights;
  int64_t sequence_length = 256;
  bool random_tokens = false, reset_attention = false;

  // [train]
  std::filesystem::path out;    ///< empty: nothing is written
  std::string start = "fresh";  ///< model.path's weights only, step 0 ("fresh"); or its trainer state, step and data
                                ///< position too ("continue")
  bool resume = false;          ///< go on from the newest checkpoint in `out`
  uint64_t seed = 0;
  int64_t steps = 0;            ///< length of the whole schedule, or ...
  int64_t tokens = 0;           ///< ... as tokens
  int64_t stop_at = 0;          ///< stop (and checkpoint) after this step without annealing; 0 = run to the end
  int64_t batch_tokens = 8192;  ///< per optimizer step
  int64_t micro_batch = 8;      ///< sequences per forward pass
  std::string dtype = "bf16";   ///< compute: bf16 or f32
  int64_t threads = 0;          ///< 0: all cores
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
  double anneal_share = 0.1;     ///< last part of a wsd schedule
  double min_lr_ratio = 0.1;

  // [balance]
  std::string balance =
      "auto";  ///< auto (loss_free where the family has a selection bias, else aux), loss_free, aux, none
  double balance_rate = 1e-3, z_coef = 0;
  std::optional<double> aux_coef;          ///< empty: the checkpoint's own, else 0.01 (train::aux_coefficient)
  std::string balance_form = "per_layer";  ///< of the auxiliary loss: per_layer or transformers
  bool recentre = false;
  int64_t dead_after = 100;

  // [[growth]] and [handover]
  Json growth;  ///< tables of growth_stage.h
  std::string handover = "none";
  int64_t handover_steps = 0;

  // [checkpoint]
  int64_t checkpoint_every = 0, keep_last = 2, keep_every = 0;
  bool checkpoint_beside = true;

  Given given;

  static constexpr auto fields() {
    using O = TrainOptions;
    return std::tuple{
        field("model.path", &O::model_path, "checkpoint to start from; empty: random weights of model.family"),
        field("model.family", &O::model_family, "family of a model from nothing; see `coppice list families`"),
        field("model.vocab_size", &O::vocab_size, "ids of the tokenizer"),
        field("model.dim", &O::model_dim, "model dimension"),
        field("model.layers", &O::num_layers, "decoder layers"),
        field("model.heads", &O::num_heads, "query heads"),
        field("model.kv_heads", &O::num_kv_heads, "key and value heads"),
        field("model.head_dim", &O::head_dim, "width of a head"),
        field("model.experts", &O::num_experts, "experts a layer"),
        field("model.top_k", &O::top_k, "experts a token"),
        field("model.expert_width", &O::expert_width, "intermediate units of an expert"),
        field("model.dense_width", &O::dense_width, "intermediate units of a dense layer"),
        field("model.shared_width", &O::shared_width, "intermediate units of the shared expert, 0 for none"),
        field("model.first_dense_layers", &O::first_dense_layers, "leading layers without experts"),
        field("model.tokenizer", &O::tokenizer,
              "folder whose tokenizer files go into the checkpoints (default: model.path)"),
        field("data.train", &O::data_train, "token files (.bin/.idx prefixes)"),
        field("data.validation", &O::data_validation, "token files for the validation loss"),
        field("data.weights", &O::data_weights, "share of each training file (default: its size)"),
        field("data.random", &O::random_tokens, "uniformly random tokens instead of files, for measuring"),
        field("data.sequence_length", &O::sequence_length, "tokens a sequence"),
        field("data.reset_attention", &O::reset_attention,
              "no token sees beyond the start of its document, where positions start again from 0; a document's last "
              "token still predicts the next one's first"),
        field("train.out", &O::out, "run folder; empty: nothing is written"),
        field("train.start", &O::start,
              "fresh: weights of model.path only; continue: its optimizer state, step and data position too"),
        field("train.resume", &O::resume, "go on from the newest checkpoint in train.out"),
        field("train.seed", &O::seed, "seed of weights and data order"),
        field("train.steps", &O::steps, "optimizer steps of the whole schedule"),
        field("train.tokens", &O::tokens, "the same as tokens; give one of the two"),
        field("train.stop_at", &O::stop_at, "stop after this step, without annealing"),
        field("train.batch_tokens", &O::batch_tokens, "tokens an optimizer step"),
        field("train.micro_batch", &O::micro_batch, "sequences a forward pass"),
        field("train.dtype", &O::dtype, "compute: bf16 (fp32 master weights) or f32"),
        field("train.threads", &O::threads, "CPU threads, 0 for all cores"),
        field("train.recompute", &O::recompute, "recompute activations in the backward pass"),
        field("train.validate_every", &O::validate_every, "steps between validations, 0 for only at the end"),
        field("train.validation_tokens", &O::validation_tokens, "tokens of each validation file that are used"),
        field("optimizer.lr", &O::lr, "peak learning rate of AdamW"),
        field("optimizer.beta1", &O::beta1, "decay of the first moment"),
        field("optimizer.beta2", &O::beta2, "decay of the second moment"),
        field("optimizer.epsilon", &O::epsilon, "added to the root of the second moment"),
        field("optimizer.weight_decay", &O::weight_decay, "decoupled decay of matrices"),
        field("optimizer.clip", &O::clip, "largest gradient norm, 0 for no clipping"),
        field("optimizer.moments", &O::moments,
              "how AdamW's moments are kept: f32, or bf16 (4 bytes a parameter less)"),
        field("optimizer.spike_limit", &O::spike_limit,
              "stop when the gradient norm is so many times its recent median, 0 for never"),
        field("schedule.kind", &O::schedule, "wsd, cosine or constant"),
        field("schedule.warmup", &O::warmup, "steps of linear warm-up; -1: 100, or a tenth of a shorter run"),
        field("schedule.anneal_share", &O::anneal_share, "last part of a wsd schedule, in which the rate falls"),
        field("schedule.min_lr_ratio", &O::min_lr_ratio, "last learning rate as a share of the peak"),
        field("balance.kind", &O::balance, "auto, loss_free, aux or none"),
        field("balance.rate", &O::balance_rate, "step u of loss-free balancing"),
        field("balance.aux_coef", &O::aux_coef,
              "coefficient of the auxiliary loss (default: the checkpoint's own, else 0.01)"),
        field("balance.form", &O::balance_form,
              "auxiliary loss: per_layer, every layer even, or transformers, layers averaged first"),
        field("balance.z_coef", &O::z_coef, "coefficient of the router z-loss"),
        field("balance.recentre", &O::recentre, "keep the mean of the selection bias at zero"),
        field("balance.dead_after", &O::dead_after,
              "steps without a token after which an expert is called dead, 0 for never"),
        field("growth", &O::growth, "[[growth]] tables: the model grows in mid-run (docs/training.md)"),
        field("handover.policy", &O::handover,
              "routing after a growth: none, release (lineage-unique top-K, let go), keep, or dormant copies"),
        field("handover.steps", &O::handover_steps, "steps of a release, or in which dormant copies wake"),
        field("checkpoint.every", &O::checkpoint_every, "steps between checkpoints, 0 for only at the end"),
        field("checkpoint.keep_last", &O::keep_last, "newest checkpoints to keep"),
        field("checkpoint.keep_every", &O::keep_every, "also keep those at multiples of this step"),
        field("checkpoint.beside", &O::checkpoint_beside, "write beside training, from a copy of the state in memory")};
  }
};

}  // namespace coppice::train
