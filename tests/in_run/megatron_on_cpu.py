"""Megatron Core on the CPU: what it asks of a GPU is answered by the CPU. Everything else is Megatron's own code."""

import contextlib
import warnings
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

warnings.filterwarnings("ignore")
EXPERTS, VOCAB, LENGTH = 4, 64, 12
TOKENS = torch.arange(24).reshape(2, LENGTH) % VOCAB


class OnCpu(TorchFunctionMode):
    """Tensors for ``cuda`` are made on the CPU, and types of CPU tensors are named as those of CUDA."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = "cpu"
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.Tensor.type and len(args) == 1 and not kwargs:
            return function(*args).replace("torch.", "torch.cuda.")
        return function(*args, **kwargs)


class NoRandomState:
    def fork(self, *arguments):
        return contextlib.nullcontext()


@contextlib.contextmanager
def steps_of_torch_adam():
    """Apex's FusedAdam counts steps in its groups, torch's AdamW for each parameter, where Megatron's loading of a checkpoint misses them."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    real = DistributedOptimizer._set_main_param_and_optimizer_states

    def set_states(self, parameter, tensors):
        steps = self._get_main_param_and_optimizer_states(parameter)["step"]
        real(self, parameter, {"step": steps, **tensors})

    DistributedOptimizer._set_main_param_and_optimizer_states = set_states
    try:
        yield
    finally:
        DistributedOptimizer._set_main_param_and_optimizer_states = real


@contextlib.contextmanager
def on_cpu():
    """The CPU answers where Megatron asks for a GPU."""
    stand_ins = {"current_device": lambda: torch.device("cpu"), "Stream": lambda *a, **k: None, "synchronize": lambda *a: None}
    from megatron.core import tensor_parallel
    from megatron.core.transformer.moe import moe_utils

    moe_utils.te_general_gemm = None  # not defined where Transformer Engine is missing
    with contextlib.ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(tensor_parallel, "get_cuda_rng_tracker", NoRandomState))
        stack.enter_context(mock.patch.object(tensor_parallel, "model_parallel_cuda_manual_seed", torch.manual_seed))
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # Megatron compiles small functions, which takes half a minute
        stack.enter_context(OnCpu())
        yield


@contextlib.contextmanager
def megatron(rank=0, world_size=1, store=None, experts_over=1):
    """Megatron's groups over Gloo; several ranks meet in the file `store`."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    store = dist.HashStore() if world_size == 1 else dist.FileStore(str(store), world_size)
    with on_cpu():
        dist.init_process_group("gloo", rank=rank, world_size=world_size, store=store)
        try:
            parallel_state.initialize_model_parallel(expert_model_parallel_size=experts_over)
            yield
        finally:
            leave_groups()


def leave_groups():
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gpt(experts=EXPERTS, **more):
    """A small GPT with two MoE layers."""
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    torch.manual_seed(0)
    settings = dict(
        num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=24, moe_ffn_hidden_size=24, num_moe_experts=experts,
        moe_router_topk=2, use_cpu_initialization=True, gated_linear_unit=True, add_bias_linear=False, bias_dropout_fusion=False,
        activation_func=torch.nn.functional.silu, moe_router_load_balancing_type="none", moe_router_score_function="sigmoid",
        moe_router_enable_expert_bias=True, moe_token_dispatcher_type="allgather", hidden_dropout=0.0, attention_dropout=0.0,
        pipeline_dtype=torch.float32) | more
    config = TransformerConfig(**settings)
    return GPTModel(config, get_gpt_layer_local_spec(num_experts=experts, moe_grouped_gemm=False), vocab_size=VOCAB, max_sequence_length=32)


def wrap(models):
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    settings = DistributedDataParallelConfig(use_distributed_optimizer=True, overlap_grad_reduce=False)
    return [DistributedDataParallel(model.config, settings, model) for model in models]


def make_optimizer(chunks, **more):
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    return get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=1e-3, use_distributed_optimizer=True, **more), chunks)


def loss_of(model, tokens=TOKENS):
    mask = torch.triu(torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool), 1)
    return model(tokens, torch.arange(LENGTH).expand(len(tokens), LENGTH), mask, labels=tokens).mean()


def step(chunk, optimizer, tokens=TOKENS):
    """One of Megatron's training steps; returns the loss before it."""
    chunk.zero_grad_buffer()
    optimizer.zero_grad()
    loss = loss_of(chunk, tokens)
    loss.backward()
    chunk.finish_grad_sync()
    optimizer.step()
    return float(loss.detach())


def whole_states(optimizer, model):
    """Main parameters and moments by name, of one rank that has them whole."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    out = {}
    for part in optimizer.chained_optimizers:
        for parameter in part.model_param_group_index_map:
            found = part._get_main_param_and_optimizer_states(parameter)
            out[names[parameter]] = {k: v.detach().clone().view(parameter.shape if v.dim() else ()) for k, v in found.items()}
    return out
