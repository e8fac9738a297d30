"""One rank of models of transformers, sharded by fully_shard or copied by DDP: grown in the middle of training, beside the same model alone."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from runs import TOKENS, everything, model_of
from sharded_runs import check_same, gathered_scores, raised, twin_of, whole_tensors

import coppice
import coppice.grow_tensors
from coppice.transformers import grown_config


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


def sharded(model, dim=0, mesh=None):
    """A unit for each layer and one for the rest; experts along the dimension `dim`."""
    base = model.base_model
    layers = base.layers if hasattr(base, "layers") else [*base.encoder.layers, *base.decoder.layers]
    for layer in layers:
        fully_shard(layer, mesh=mesh, shard_placement_fn=lambda p: Shard(dim) if p.dim() == 3 else None)
    fully_shard(model, mesh=mesh)
    return model


def larger_of(model, plan, dtype=torch.float32):
    config = grown_config(model, plan)
    torch.manual_seed(5)
    return getattr(__import__("transformers"), type(model).__name__.removeprefix("FSDP"))(config).to(dtype)


def backward(model, tokens=None):
    tokens = TOKENS[dist.get_rank() :: dist.get_world_size()] if tokens is None else tokens
    base = model.module if isinstance(model, DistributedDataParallel) else model
    more = {"decoder_input_ids": tokens} if base.config.is_encoder_decoder else {}
    loss = model(input_ids=tokens, labels=tokens, use_cache=False, **more).loss
    loss.backward()
    return loss.detach()


def step(model, optimizer, tokens=None):
    loss = backward(model, tokens)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def trained(name, **how):
    model = sharded(model_of(name), **how)
    optimizer = adamw(model)
    step(model, optimizer)
    return model, optimizer


def check_grown(larger, larger_optimizer, twin, its_optimizer, steps=2):
    """The same bytes; training goes on as with one rank."""
    check_same(whole_tensors(larger, larger_optimizer), whole_tensors(twin, its_optimizer))
    for _ in range(steps):
        loss, alone = step(larger, larger_optimizer), step(twin, its_optimizer, TOKENS)
        dist.all_reduce(loss)
        assert abs(float(loss) / dist.get_world_size() - float(alone)) < 2e-3, (loss, alone)


def grow(name, before=0, after=0, mesh=None, empty=False, steps=2, **options):
    model, optimizer = trained(name, dim=before)
    twin, its_optimizer = twin_of(model, optimizer, model_of(name), adamw)
    kept = whole_tensors(model, optimizer)
    if after:
        with torch.no_grad():
            model(input_ids=TOKENS, use_cache=False)  # leaves the parameters of the outermost unit put together
    plan = coppice.plan(model, **options)
    larger = sharded(larger_of(model, plan), dim=after, mesh=None if mesh is None else init_device_mesh("cpu", mesh, mesh_dim_names=("copies", "parts")))
    larger_optimizer = adamw(larger)
    growth = coppice.expand_into(model, larger, plan, optimizer=optimizer, larger_optimizer=larger_optimizer, empty_optimizer=empty)
    assert growth == coppice.expand_(twin, plan, optimizer=its_optimizer)
    left = whole_tensors(model, optimizer)
    check_same(left, {name: t for name, t in kept.items() if not empty or ".exp_avg" not in name})
    check_grown(larger, larger_optimizer, twin, its_optimizer, steps)


def fails_on_one_rank():
    """At any place of the work on rank 1: both ranks raise, and the model trains on as if nothing had been."""
    model, optimizer = trained("mixtral")
    plan = coppice.plan(model, "2x", expert_init="copy_noise")
    kept = whole_tensors(model, optimizer)
    real = coppice.grow_tensors.TensorGrower.fill_child, coppice.transfer.Transfer._make_room
    for at in (1, 5, 30):
        made = [0]

        def fail(made=made, at=at):
            made[0] += 1
            if made[0] == at and dist.get_rank() == 1:
                raise MemoryError("injected")

        def fill_child(self, *arguments, fail=fail):
            fail()
            return real[0](self, *arguments)

        def make_room(self, *arguments, fail=fail):
            fail()
            return real[1](self, *arguments)

        larger = sharded(larger_of(model, plan))
        coppice.grow_tensors.TensorGrower.fill_child, coppice.transfer.Transfer._make_room = fill_child, make_room
        kind = MemoryError if dist.get_rank() == 1 else coppice.PeerError
        text = raised(kind, coppice.expand_into, model, larger, plan, optimizer=optimizer, larger_optimizer=adamw(larger))
        assert "injected" in text, text
        coppice.grow_tensors.TensorGrower.fill_child, coppice.transfer.Transfer._make_room = real
        check_same(whole_tensors(model, optimizer), kept)
    step(model, optimizer)


def says_what_is_wrong():
    model, optimizer = trained("mixtral")
    plan = coppice.plan(model, "2x")
    larger = sharded(larger_of(model, plan))
    larger_optimizer = adamw(larger)

    def refused(larger=larger, plan=plan, kind=coppice.UsageError, optimizer=optimizer, larger_optimizer=larger_optimizer):
        return raised(kind, coppice.expand_into, model, larger, plan, optimizer=optimizer, larger_optimizer=larger_optimizer)

    cases = [
        (refused(larger=model), "it is the model itself"),
        (refused(larger=3), "larger: a int; wanted a module"),
        (refused(larger=sharded(larger_of(model, coppice.plan(model, 6))), larger_optimizer=None), "num_local_experts is 6, wanted 8"),
        (refused(larger=sharded(model_of("mixtral")), larger_optimizer=None), "down_proj is [4, "),
        (refused(larger=sharded(model_of("olmoe")), larger_optimizer=None), "it is a olmoe, wanted a mixtral"),
        (refused(larger=larger_of(model, plan, torch.bfloat16), larger_optimizer=None), "is torch.bfloat16, the model's is torch.float32"),
        (refused(plan=coppice.plan(model_of("glm4_moe"), "2x")), "the plan does not fit the model"),
        (refused(plan={}), "plan: a dict; wanted"),
        (refused(larger_optimizer=None), "larger_optimizer: none; wanted AdamW"),
        (refused(larger_optimizer=torch.optim.SGD(larger.parameters())), "larger_optimizer: SGD; wanted AdamW"),
        (refused(larger_optimizer=adamw(model)), "is not one of the larger model (give the optimizer that trains it"),
        (refused(optimizer=adamw(larger)), "is not one of the model"),
        (refused(larger_optimizer=torch.optim.AdamW([p for n, p in larger.named_parameters() if "gate" not in n])), "it does not train model.layers.0.mlp.gate.weight"),
        (refused(larger=larger_of(model, plan).to("meta"), kind=coppice.UnsupportedError, larger_optimizer=None), "on the meta device"),
    ]
    for found, wanted in cases:
        assert wanted in found, (found, wanted)
    grouped = adamw(model)
    grouped.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    assert "a parameter of its group 1" in refused(optimizer=grouped)
    split = torch.optim.AdamW([{"params": [p]} for p in model.parameters()])
    assert "has parameters of several groups" in refused(optimizer=split)
    other = coppice.plan(model, "2x", seed=dist.get_rank())
    assert "another plan than rank 0" in refused(plan=other)
    model.model.layers[0].mlp.gate.weight.requires_grad_(False)
    assert "requires_grad of model.layers.0.mlp.gate.weight is True, the model's is False" in refused()
    model.model.layers[0].mlp.gate.weight.requires_grad_(True)
    text = raised(coppice.UsageError, coppice.watch, model)
    assert "give passes=None" in text and "DTensors" in text
    assert "coppice.expand_into" in raised(coppice.UnsupportedError, coppice.expand_, model, plan)


def a_plain_model_fills_a_sharded_one():
    model = model_of("qwen3_moe")
    optimizer = adamw(model)
    step(model, optimizer, TOKENS)
    plan = coppice.plan(model, "1.5x")
    larger = sharded(larger_of(model, plan))
    larger_optimizer = adamw(larger)
    before = everything(model, optimizer)
    coppice.expand_into(model, larger, plan, optimizer=optimizer, larger_optimizer=larger_optimizer)
    from runs import assert_unchanged

    assert_unchanged(before, everything(model, optimizer))
    coppice.expand_(model, plan, optimizer=optimizer)
    check_grown(larger, larger_optimizer, model, optimizer)


def watches():
    """The mean over ranks, as fully_shard makes it, against one rank that sees all tokens."""
    model, twin = sharded(model_of("mixtral"), dim=1), model_of("mixtral")
    optimizers = adamw(model), adamw(twin)
    step(model, optimizers[0])
    step(twin, optimizers[1], TOKENS)
    mine = TOKENS[dist.get_rank() :: dist.get_world_size()]
    gathered_scores(model, optimizers[0], twin, optimizers[1], [lambda m, t=t: backward(m, t) for t in (mine, mine.flip(1))],
                    [lambda m, t=t: backward(m, t) for t in (TOKENS, TOKENS.flip(1))])


def ddp_is_wrapped_again():
    """What expand_ advises for DDP: the model inside, with its optimizer, and a new wrapper."""
    wrapped, alone = DistributedDataParallel(model_of("mixtral")), model_of("mixtral")
    optimizers = [adamw(wrapped), adamw(alone)]
    step(wrapped, optimizers[0])
    step(alone, optimizers[1], TOKENS)
    plan = coppice.plan(wrapped, "2x", router_init="copy")
    assert "model.module" in raised(coppice.UnsupportedError, coppice.expand_, wrapped, plan, optimizer=optimizers[0])
    coppice.expand_(wrapped.module, plan, optimizer=optimizers[0])
    wrapped = DistributedDataParallel(wrapped.module)
    coppice.expand_(alone, plan, optimizer=optimizers[1])
    for _ in range(3):
        loss, its = step(wrapped, optimizers[0]), step(alone, optimizers[1], TOKENS)
        dist.all_reduce(loss)
        assert abs(float(loss) / dist.get_world_size() - float(its)) < 2e-3
    for found, wanted in zip(wrapped.parameters(), alone.parameters(), strict=True):
        everywhere = [torch.empty_like(found) for _ in range(dist.get_world_size())]
        dist.all_gather(everywhere, found.detach())
        assert torch.equal(everywhere[0], everywhere[-1]) and torch.allclose(found, wanted, atol=2e-3)


def ddp_into_ddp():
    wrapped = DistributedDataParallel(model_of("mixtral"))
    optimizer = adamw(wrapped)
    step(wrapped, optimizer)
    plan = coppice.plan(wrapped, "2x")
    larger = DistributedDataParallel(larger_of(wrapped.module, plan))
    larger_optimizer = adamw(larger)
    coppice.expand_into(wrapped, larger, plan, optimizer=optimizer, larger_optimizer=larger_optimizer)
    coppice.expand_(wrapped.module, plan, optimizer=optimizer)
    check_same(whole_tensors(larger, larger_optimizer), whole_tensors(wrapped, optimizer))
    step(larger, larger_optimizer)


def ranks_agree_in_place():
    """expand_ of plain models: other plans and a failure of one rank are refused on all, and the same plan gives the same bits."""
    model = model_of("mixtral")
    plan = coppice.plan(model, "2x", seed=7)
    assert "another plan than rank 0" in raised(coppice.UsageError, coppice.expand_, model, coppice.plan(model, "2x", seed=dist.get_rank()))
    broken = model_of("mixtral")
    if dist.get_rank() == 1:
        down = broken.model.layers[0].mlp.experts.down_proj
        down.data = down.data.to(torch.float8_e4m3fn)
    text = raised(coppice.UnsupportedError if dist.get_rank() == 1 else coppice.PeerError, coppice.expand_, broken, plan)
    assert "float8" in text and (dist.get_rank() == 1 or "rank 1 failed, so no rank changed its model" in text), text
    assert broken.config.num_local_experts == 4
    coppice.expand_(model, plan)
    rows = [torch.empty_like(model.model.layers[0].mlp.gate.weight.detach()) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, model.model.layers[0].mlp.gate.weight.detach())
    assert all(torch.equal(row, rows[0]) for row in rows)


def things():
    """What each rank does, and what stands in for what is missing meanwhile."""
    return {
        "mixtral": lambda: grow("mixtral", experts=5, expert_init="copy_noise", router_init="copy_noise", seed=1),
        "qwen3_moe": lambda: grow("qwen3_moe", before=1, after=1, experts="2x", optimizer_state="share", order="siblings"),
        "gpt_oss": lambda: grow("gpt_oss", after=2, mesh=(2, 1), experts="1.5x", expert_init="drop_units", empty=True),
        # a module for each expert; how many tokens it takes depends on how many a rank has, so losses differ
        "nllb_moe": lambda: grow("nllb_moe", steps=0, experts="2x", expert_init="copy_noise", optimizer_state="reset"),
        "plain": a_plain_model_fills_a_sharded_one,
        "watch": watches,
        "failure": fails_on_one_rank,
        "wrong": says_what_is_wrong,
        "in-place": ranks_agree_in_place,
        "ddp-again": ddp_is_wrapped_again,
        "ddp-into": ddp_into_ddp,
    }, []
