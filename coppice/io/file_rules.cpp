#include "coppice/io/file_rules.h"

#include <algorithm>

#include "coppice/base/text.h"

namespace coppice::io {
namespace {

constexpr auto kRewritten = FileDecision::kRewritten;
constexpr auto kCarried = FileDecision::kCarried;
constexpr auto kChecked = FileDecision::kChecked;
constexpr auto kLeftOut = FileDecision::kLeftOut;
constexpr auto kRefused = FileDecision::kRefused;

constexpr std::string_view kSameWeights =
    "the weights before the change, in a format that coppice does not write (convert the new model again)";
constexpr std::string_view kOldState =
    "the state of a trainer for the experts before the change (move it away to change only the weights; training then "
    "starts with a new optimizer state)";
constexpr std::string_view kOtherExperts = "counts experts or names them by number, which the change makes wrong";

constexpr FileRule kRules[] = {
    {"configuration and lineage", "/config.json /coppice.json", kRewritten, ""},
    {"weights, in one file or as shards that an index names", "/model.safetensors /model.safetensors.index.json",
     kRewritten, ""},
    {"optimizer state of `coppice train`", "/trainer/", kRewritten,
     "`convert` leaves it out; the converted model starts with a new optimizer state"},
    {"adapters (LoRA and others)", "adapter_config.json adapter_model* adapters.safetensors adapter.safetensors",
     kRefused,
     "an adapter, which belongs to the weights before the change (merge it into them first, as peft's "
     "merge_and_unload does, or move all of its files away)"},
    {"states of Hugging Face's trainer", "optimizer.pt optimizer.bin optimizer*.pt", kRefused, kOldState},
    {"states of DeepSpeed", "global_step*/ mp_rank_*/ zero_pp_rank_* mp_rank_* bf16_zero_*", kRefused, kOldState},
    {"states of FSDP and torch's distributed checkpoints", "*.distcp .metadata pytorch_model_fsdp*/ optimizer_[0-9]/",
     kRefused, kOldState},
    {"states of Megatron, NeMo and Orbax",
     "iter_[0-9]*/ distrib_optim.pt *.nemo model_weights/ ocdbt.process_*/ manifest.ocdbt _METADATA "
     "_CHECKPOINT_METADATA",
     kRefused, kOldState},
    {"what trainers keep beside their states",
     "latest latest_universal latest_checkpointed_iteration.txt zero_to_fp32.py scheduler.pt scheduler.bin scaler.pt "
     "rng_state*.pth random_states_*.pkl trainer_state.json training_args.bin",
     kLeftOut, "a trainer would continue from it as if the model had not changed"},
    {"earlier checkpoints of a run", "checkpoint-[0-9]*/ checkpoints/ step-[0-9]*/", kLeftOut,
     "models before the change"},
    {"the publisher's own format",
     "/original/ /metal/ consolidated*.safetensors consolidated*.safetensors.index.json "
     "consolidated*.pth params.json",
     kLeftOut, kSameWeights},
    {"torch pickles", "pytorch_model* *.bin.index.json *.bin *.pt *.pth *.ckpt *.pkl", kLeftOut, kSameWeights},
    {"GGUF and GGML", "*.gguf *.ggml *.llamafile", kLeftOut, kSameWeights},
    {"TensorFlow, Flax and Rust", "tf_model* *.h5 flax_model* *.msgpack *.tflite *.ot", kLeftOut, kSameWeights},
    {"ONNX, OpenVINO, Core ML, TensorRT and other programs' formats",
     "*.onnx *.onnx_data onnx/ openvino/ openvino_* coreml/ *.mlmodel *.mlpackage/ *.engine *.pdparams *.npy *.npz "
     "*.mnn "
     "*.rkllm",
     kLeftOut, kSameWeights},
    {"other safetensors files", "*.safetensors *.safetensors.index.json", kRefused,
     "weights that do not belong to the model: shards without model.safetensors.index.json or not in it, a second "
     "format, or an unknown part (move it away, or correct the index)"},
    {"archives", "*.zip *.tar *.tar.* *.tgz *.7z *.rar *.gz *.bz2 *.xz *.zst", kLeftOut,
     "may contain the weights before the change; coppice does not read it (copy it yourself if it does not)"},
    {"digests and signatures", "*.sha256 *.sha256sum SHA256SUMS* *.sig *.asc model.sig", kLeftOut,
     "describes files that have changed"},
    {kQuantisationRecords,
     "quantize_config.json quant_config.json quantization_config.json hf_quant_config.json kv_cache_scales.json",
     kChecked, kOtherExperts},
    {"hidden folders", ".*/", kLeftOut, "a program's own records (.git, .cache)"},
    {"tokenizers and chat templates",
     "tokenizer* special_tokens_map.json added_tokens.json vocab.json vocab.txt merges.txt chat_template* *.tiktoken "
     "tekken.json spiece.model sentencepiece*",
     kCarried, ""},
    {"generation and processor settings", "generation_config.json *processor_config.json", kCarried, ""},
    {"remote code", "*.py", kCarried, ""},
    {"other JSON and YAML", "*.json *.yaml *.yml", kChecked, kOtherExperts},
    {"everything else: model cards, licences, pictures", "*", kCarried, ""},
};

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](char c) { return lower(c); });
  return out;
}

/// Whether `pattern` matches the whole `text`: `*` is any characters, `[0-9]` a digit.
bool fits(std::string_view pattern, std::string_view text) {
  constexpr std::string_view kDigit = "[0-9]";
  if (pattern.empty()) return text.empty();
  if (pattern.front() == '*') {
    return fits(pattern.substr(1), text) || (!text.empty() && fits(pattern, text.substr(1)));
  }
  if (text.empty()) return false;
  if (pattern.starts_with(kDigit)) {
    return text.front() >= '0' && text.front() <= '9' && fits(pattern.substr(kDigit.size()), text.substr(1));
  }
  return pattern.front() == text.front() && fits(pattern.substr(1), text.substr(1));
}

bool is_folder_pattern(std::string_view pattern) { return pattern.ends_with('/'); }

/// The first rule with a pattern for `name`, a directory or a file; `at_top`: it is at the top of the model directory.
const FileRule* find_rule(std::string_view name, bool at_top, bool is_folder) {
  for (const FileRule& rule : kRules) {
    const bool ignores_case = rule.decision == kLeftOut || rule.decision == kRefused;  // MODEL.GGUF is a GGUF, too
    for (const std::string& given : split(rule.patterns, ' ')) {
      std::string_view pattern = given;
      if (is_folder_pattern(pattern) != is_folder || (pattern.starts_with('/') && !at_top)) continue;
      if (pattern.starts_with('/')) pattern.remove_prefix(1);
      if (is_folder) pattern.remove_suffix(1);
      if (fits(pattern, name) || (ignores_case && fits(lower(pattern), lower(name)))) return &rule;
    }
  }
  return nullptr;
}

}  // namespace

std::string_view decision_name(FileDecision decision) {
  switch (decision) {
    case FileDecision::kRewritten: return "rewritten";
    case FileDecision::kCarried: return "copied";
    case FileDecision::kChecked: return "copied if it does not mention experts";
    case FileDecision::kLeftOut: return "left out";
    case FileDecision::kRefused: break;
  }
  return "refused";
}

std::span<const FileRule> file_rules() { return kRules; }

const FileRule* folder_rule(const std::filesystem::path& relative) {
  return find_rule(relative.filename().string(), relative.parent_path().empty(), true);
}

const FileRule& file_rule(const std::filesystem::path& relative) {
  std::filesystem::path folder;
  for (const auto& part : relative.parent_path()) {
    folder /= part;
    if (const FileRule* rule = folder_rule(folder)) return *rule;
  }
  const FileRule* rule = find_rule(relative.filename().string(), folder.empty(), false);
  return rule == nullptr ? kRules[std::size(kRules) - 1] : *rule;
}

}  // namespace coppice::io
