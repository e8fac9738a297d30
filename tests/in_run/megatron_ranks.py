"""What each of two ranks does in the tests of Megatron Core; a rank leaves its result in a file."""

import math
import re

import torch
from megatron_on_cpu import TOKENS, gpt, make_optimizer, megatron, step, wrap

import coppice
from coppice.megatron import expand_megatron


def train_on_two_ranks(rank, folder, experts_over):
    """Steps, an expansion and more steps, each rank with half of the batch."""
    with megatron(rank, 2, folder / "store", experts_over):
        model = gpt(expert_model_parallel_size=experts_over)
        (chunk,) = wrap([model])
        optimizer = make_optimizer([chunk])
        tokens = TOKENS[rank : rank + 1]
        plan = coppice.plan(chunk, "2x", expert_init="copy_noise", seed=6)
        for _ in range(2):
            step(chunk, optimizer, tokens)
        done = expand_megatron([chunk], plan, optimizer=optimizer, wrap=wrap, make_optimizer=make_optimizer)
        assert all(math.isfinite(step(done.chunks[0], done.optimizer, tokens)) for _ in range(3))
        torch.save({name: p.detach() for name, p in model.named_parameters()}, folder / f"result-{rank}")


def move_over_two_ranks(rank, folder, order):
    """An expansion of experts that are divided over the ranks."""
    with megatron(rank, 2, folder / "store", 2):
        model = gpt(expert_model_parallel_size=2)
        optimizer = known(model, 2 * rank)
        plan = coppice.plan(model, "2x", expert_init="interpolate", optimizer_state="interpolate", seed=8, order=order)
        coppice.expand_(model, plan, optimizer=optimizer)
        mlp = model.decoder.layers[1].mlp
        assert mlp.num_local_experts == len(mlp.experts.local_experts) == 4 and mlp.local_expert_indices == list(range(4 * rank, 4 * rank + 4))
        assert mlp.token_dispatcher.local_expert_indices == mlp.local_expert_indices and model.config.num_moe_experts == mlp.router.num_experts == 8
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert trained == {id(p) for p in model.parameters()} and set(optimizer.state) <= set(model.parameters())
        out = {}
        for name, parameter in model.named_parameters():
            number = name.split("local_experts.")[1].split(".")[0] if "local_experts" in name else None
            whole = name if number is None else name.replace(f"local_experts.{number}.", f"local_experts.{4 * rank + int(number)}.")
            out[whole] = (parameter.detach(), {k: v for k, v in optimizer.state[parameter].items()})
        torch.save(out, folder / f"result-{rank}")


def known(model, first=0):
    """Weights and moments by the number of an expert in its layer, whatever rank has it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for name, parameter in model.named_parameters():
        found = re.search(r"layers\.(\d+)\..*local_experts\.(\d+)\.linear_fc(\d)", name)
        seed = 7 + len(name) if not found else 1000 * int(found.group(1)) + 10 * (first + int(found.group(2))) + int(found.group(3))
        torch.manual_seed(seed)
        parameter.data.normal_()
        optimizer.state[parameter] = {
            "step": torch.tensor(5.0), "exp_avg": torch.randn_like(parameter), "exp_avg_sq": torch.rand_like(parameter)}
    return optimizer
