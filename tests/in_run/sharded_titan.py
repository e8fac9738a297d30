"""One rank of torchtitan's model, sharded by its own functions: grown in the middle of training, beside the same model that is whole."""

import functools
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from sharded_runs import check_same, gathered_scores, raised, twin_of, whole_tensors
from torchtitan.models.llama4.infra.parallelize import apply_fsdp, apply_moe_ep_tp
from torchtitan.models.moe import kernels, utils
from torchtitan_on_cpu import TINY, histograms, tiny_arguments
from torchtitan_on_cpu import tiny_model as model_of

import coppice
from coppice.torchtitan import grown_config

# torchtitan makes indices by a Triton kernel, beside which it has one for the CPU.
on_the_cpu = functools.partial(kernels.generate_permute_indices, use_cpu=True)
VOCAB = TINY["vocab_size"]
TOKENS = torch.arange(48).reshape(4, 12) * 7 % VOCAB


arguments = functools.partial(tiny_arguments, num_shared_experts=1)


def sharded(model, way):
    """As torchtitan's parallelize_qwen3 does it: fully_shard over all ranks, or experts over pairs of ranks and fully_shard over both."""
    ranks = dist.get_world_size()
    more = {}
    if way == "ep":
        meshes = init_device_mesh("cpu", (ranks // 2, 2), mesh_dim_names=("efsdp", "ep"))
        apply_moe_ep_tp(model, tp_mesh=None, ep_mesh=meshes["ep"], etp_mesh=None, ep_etp_mesh=None)
        more = {"ep_degree": 2, "edp_mesh": meshes["efsdp"]}
    apply_fsdp(model, init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",)), param_dtype=torch.float32,
               reduce_dtype=torch.float32, pp_enabled=False, **more)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # Gloo has no multiplied sum
    return model


def adamw(model):
    return torch.optim.AdamW([{"params": [p for n, p in model.named_parameters() if "moe" in n], "weight_decay": 0.01},
                              {"params": [p for n, p in model.named_parameters() if "moe" not in n]}], lr=1e-3)


def backward(model, tokens):
    """torchtitan divides by the tokens of all ranks and sums gradients over them."""
    logits = model(tokens)[:, :-1].flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum") / TOKENS[:, 1:].numel()
    loss.backward()
    return loss.detach()


def step(model, optimizer, tokens):
    loss = backward(model, tokens)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def grow(before, after, **options):
    """From a model sharded one way to one sharded another way, which trains on as the whole one."""
    mine = TOKENS[dist.get_rank() :: dist.get_world_size()]
    model = sharded(model_of(arguments()), before)
    optimizer = adamw(model)
    step(model, optimizer, mine)
    twin, its_optimizer = twin_of(model, optimizer, model_of(arguments()), adamw)
    plan = coppice.plan(model, **options)
    assert plan == coppice.plan(twin, **options)
    larger = sharded(model_of(grown_config(arguments(), plan)), after)
    larger_optimizer = adamw(larger)
    kept = whole_tensors(model, optimizer)
    optimizer.param_groups[1]["lr"] = its_optimizer.param_groups[1]["lr"] = 2e-3
    growth = coppice.expand_into(model, larger, plan, optimizer=optimizer, larger_optimizer=larger_optimizer)
    assert growth == coppice.expand_(twin, plan, optimizer=its_optimizer)
    check_same(whole_tensors(model, optimizer), kept)
    check_same(whole_tensors(larger, larger_optimizer), whole_tensors(twin, its_optimizer))
    settings = [[{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in (larger_optimizer, its_optimizer)]
    assert settings[0] == settings[1] and settings[0][1]["lr"] == 2e-3
    assert all(p.grad is None for p in larger.parameters())
    losses = []
    for _ in range(2):
        loss = step(larger, larger_optimizer, mine)
        dist.all_reduce(loss)
        losses.append((float(loss), float(step(twin, its_optimizer, TOKENS))))
    for found, wanted in losses:
        assert abs(found - wanted) < 2e-4, losses
    assert losses[-1][0] < losses[0][0]


def watch(way):
    """Scores of the sharded model are those of the whole one."""
    mine = TOKENS[dist.get_rank() :: dist.get_world_size()]
    model, twin = sharded(model_of(arguments()), way), model_of(arguments())
    optimizers = [adamw(model), adamw(twin)]
    step(model, optimizers[0], mine)
    step(twin, optimizers[1], TOKENS)
    gathered_scores(model, optimizers[0], twin, optimizers[1], [lambda m, t=t: backward(m, t) for t in (mine, mine.flip(1))],
                    [lambda m, t=t: backward(m, t) for t in (TOKENS, TOKENS.flip(1))])


def refuses_in_place(way):
    model = sharded(model_of(arguments()), way)
    text = raised(coppice.UnsupportedError, coppice.expand_, model, coppice.plan(model, "2x"))
    assert "expand_into" in text, text


def things():
    """What each rank does, and what stands in for what is missing meanwhile."""
    return {
        "fsdp-to-ep": lambda: grow("fsdp", "ep", experts=6, expert_init="copy_noise", order="siblings", optimizer_state="share", seed=2),
        "ep-to-fsdp": lambda: grow("ep", "fsdp", experts="2x", expert_init="drop_units", seed=3),
        "ep-to-ep": lambda: grow("ep", "ep", experts=6, router_init="copy_noise"),
        "watch-fsdp": lambda: watch("fsdp"),
        "watch-ep": lambda: watch("ep"),
        "refuses": lambda: refuses_in_place("fsdp"),
    }, [histograms(), mock.patch.object(utils, "generate_permute_indices", on_the_cpu)]
