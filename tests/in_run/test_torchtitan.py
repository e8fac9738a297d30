"""torchtitan's own models: expanded in memory and on disk, against a reference by hand; training goes on."""

import copy
import json
import math
import pathlib
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from runs import assert_unchanged, everything  # noqa: E402
from torchtitan_on_cpu import TINY, histograms  # noqa: E402
from torchtitan_on_cpu import tiny_arguments as arguments  # noqa: E402
from torchtitan_on_cpu import tiny_model as model_of  # noqa: E402

import coppice  # noqa: E402
import coppice.dcp  # noqa: E402
from coppice.torchtitan import grown_config  # noqa: E402

pytest.importorskip("torchtitan")

VOCAB = TINY["vocab_size"]
TOKENS = torch.arange(24).reshape(2, 12) % VOCAB
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


@pytest.fixture(autouse=True)
def histograms_on_the_cpu():
    with histograms():
        yield


def step(model, optimizer):
    loss = torch.nn.functional.cross_entropy(model(TOKENS).flatten(0, 1)[:-1], TOKENS.flatten()[1:])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def trained():
    model = model_of(arguments())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    for _ in range(3):
        step(model, optimizer)
    return model, optimizer


def check_by_hand(plan, before, state_before, after, state_after):
    """Every tensor after the growth: copied rows by the plan, everything else as it was."""
    for name, tensor in before.items():
        layer = int(name.split(".")[1]) if name.startswith("layers.") else None
        grows = ".moe.experts." in name or ".router.gate." in name or "expert_bias" in name
        wanted = tensor[plan.parents[layer]] if grows else tensor
        if "tokens_per_expert" in name:
            wanted = torch.zeros(plan.experts[1])
        assert torch.equal(after[name], wanted), name
        for key, value in state_before.get(name, {}).items():
            wanted = value[plan.parents[layer]] if grows and value.dim() else value
            assert torch.equal(state_after[name][key], wanted), (name, key)


def tensors(model):
    return {name: t.detach().clone() for name, t in model.state_dict(keep_vars=True).items()}


def states(model, optimizer):
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)]: {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()}


def test_grows_in_memory_as_by_hand_and_trains_on():
    model, optimizer = trained()
    before, state_before = tensors(model), states(model, optimizer)
    plan = coppice.plan(model, "2x", router_init="copy")
    assert plan.experts == (4, 8)
    coppice.expand_(model, plan, optimizer=optimizer)
    check_by_hand(plan, before, state_before, tensors(model), states(model, optimizer))
    moe = model.layers["0"].moe
    assert model.model_args.moe_args.num_experts == 8 and moe.router.num_experts == moe.experts.num_experts == 8
    assert moe.router.gate.out_features == 8 and moe.reorderer.num_experts == 8 and not moe.tokens_per_expert.any()
    losses = [step(model, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0] and all(map(math.isfinite, losses))


def test_default_router_method_uses_the_selection_bias():
    model, _ = trained()
    plan = coppice.plan(model, "2x", seed=5)
    assert plan.router_init.startswith("bias_only")
    bias, gate = model.layers["1"].moe.expert_bias.clone(), model.layers["1"].moe.router.gate.weight.detach().clone()
    coppice.expand_(model, plan)
    after = model.layers["1"].moe.expert_bias
    assert torch.equal(after[:4], bias) and 0 < (after[4:] - bias).abs().max() <= 1e-3
    assert torch.equal(model.layers["1"].moe.router.gate.weight, gate.repeat(2, 1))


def test_lineage_unique_routing_keeps_the_function():
    from coppice.lineage import lineage_unique

    model, _ = trained()
    before = model(TOKENS)
    plan = coppice.plan(model, "1.5x", router_init="copy")
    coppice.expand_(model, plan)
    with lineage_unique(model, plan):
        assert torch.allclose(model(TOKENS), before, atol=1e-5)


def test_watch_sees_its_gradients():
    model, _ = trained()
    with coppice.watch(model) as scores:
        torch.nn.functional.cross_entropy(model(TOKENS).flatten(0, 1)[:-1], TOKENS.flatten()[1:]).backward()
    experts = model.layers["0"].moe.experts
    fc1 = (experts.w1.grad.double().square() + experts.w3.grad.double().square()).flatten(1).sum(1)
    assert torch.allclose(torch.tensor(json.loads(scores.to_json())["metrics"]["gradient_squared"]["fc1"]["sum"]["0"]).double(), fc1)
    plan = coppice.plan(model, 6, scores=scores)
    assert plan.select == "waterfill" and len(plan.parents[1]) == 6


def test_a_failure_leaves_everything_as_it_was(monkeypatch):
    model, optimizer = trained()
    plan, before = coppice.plan(model, "2x"), everything(model, optimizer)
    for at in (1, 7, 20):
        made = [0]

        def new_tensor(shape, like, at=at, made=made):
            made[0] += 1
            if made[0] == at:
                raise MemoryError
            return torch.empty(shape, dtype=like.dtype)

        monkeypatch.setattr("coppice.growth.new_tensor", new_tensor)
        monkeypatch.setattr("coppice.grow_tensors.new_tensor", new_tensor)
        with pytest.raises(MemoryError):
            coppice.expand_(model, plan, optimizer=optimizer)
        assert_unchanged(before, everything(model, optimizer))


def save(model, optimizer, directory):
    """As torchtitan's checkpointer lays it out: the model's names at the top, the optimizer flat below `optimizer`."""
    state = {**model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=FLAT), "train_state": {"step": torch.tensor(3)}}
    dcp.save(state, checkpoint_id=directory, no_dist=True)


def load(directory, args):
    model = model_of(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    state = {**model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=FLAT), "train_state": {"step": torch.tensor(0)}}
    dcp.load(state, checkpoint_id=directory, no_dist=True)
    model.load_state_dict({k: v for k, v in state.items() if k not in ("optimizer", "train_state")})
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=FLAT)
    assert state["train_state"]["step"] == 3
    return model, optimizer


@pytest.mark.parametrize("options", [dict(router_init="copy"), dict(expert_init="copy_noise", optimizer_state="share", seed=2)])
def test_a_checkpoint_expands_as_the_model_in_memory(options, tmp_path):
    model, optimizer = trained()
    save(model, optimizer, tmp_path / "before")
    plan = coppice.dcp.plan_checkpoint(tmp_path / "before", "2x", **options)
    assert plan == coppice.plan(model, "2x", **options)
    coppice.dcp.expand_checkpoint(tmp_path / "before", tmp_path / "after", plan)
    on_disk, its_optimizer = load(tmp_path / "after", grown_config(arguments(), plan))
    coppice.expand_(model, plan, optimizer=optimizer)
    for name, tensor in tensors(model).items():
        assert torch.equal(on_disk.state_dict()[name], tensor), name
    for name, state in states(model, optimizer).items():
        for key, value in state.items():
            assert torch.equal(states(on_disk, its_optimizer)[name][key], value), (name, key)
    assert all(math.isfinite(step(on_disk, its_optimizer)) for _ in range(3))


def test_the_command_expands_and_says_what_is_wrong(tmp_path, capsys):
    model, optimizer = trained()
    save(model, optimizer, tmp_path / "before")
    assert coppice.dcp.main([str(tmp_path / "before"), str(tmp_path / "after"), "--experts", "6", "--router-init", "copy"]) == 0
    assert "4 -> 6 experts in 2 layers" in capsys.readouterr().out
    plan = coppice.plan(model, 6, router_init="copy")
    after, _ = load(tmp_path / "after", grown_config(arguments(), plan))
    check_by_hand(plan, {n: t for n, t in tensors(model).items() if "tokens_per" not in n}, {}, tensors(after), {})
    cases = [
        ([tmp_path / "none", tmp_path / "x"], 3, "has no .metadata"), ([tmp_path / "before", tmp_path / "after"], 2, "exists; wanted a new directory"),
        ([tmp_path / "before", tmp_path / "x", "--experts", "3"], 2, "3"), ([tmp_path / "before", tmp_path / "x", "--seed", "z"], 2, "no whole number"),
        ([tmp_path / "before", tmp_path / "x", "--expert-init", "copi"], 2, "copy"), ([tmp_path / "before", tmp_path / "none" / "x"], 4, "cannot be written")]
    for words, status, text in cases:
        assert coppice.dcp.main([str(word) for word in words]) == status
        assert text in capsys.readouterr().err
    (tmp_path / "before" / "__0_0.distcp").write_bytes(b"short")
    assert coppice.dcp.main([str(tmp_path / "before"), str(tmp_path / "y")]) == 3
    assert not list(tmp_path.glob("*y*")) and not list(tmp_path.glob("*x*")) and not list(tmp_path.glob("*.tmp*"))


def test_pieces_stay_divided_as_before(tmp_path):
    """A checkpoint of two ranks' pieces: the same number of pieces for each tensor, with borders moved."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

    model, optimizer = trained()
    save(model, optimizer, tmp_path / "before")
    real = coppice.dcp._Writer._metadata_after

    def two(self, key, before):
        after = real(self, key, before)
        if key.endswith("moe.experts.w2"):
            half = after.size[0] // 2
            chunks = [ChunkStorageMetadata(torch.Size([at, 0, 0]), torch.Size([half, *after.size[1:]])) for at in (0, half)]
            after = type(after)(after.properties, after.size, chunks)
        return after

    coppice.dcp._Writer._metadata_after = two
    try:
        plan = coppice.plan(model, "1.5x", router_init="copy")
        coppice.dcp.expand_checkpoint(tmp_path / "before", tmp_path / "halves", plan)
    finally:
        coppice.dcp._Writer._metadata_after = real
    again = coppice.dcp.plan_checkpoint(tmp_path / "halves", "2x", router_init="copy")
    coppice.dcp.expand_checkpoint(tmp_path / "halves", tmp_path / "after", again)
    chunks = dcp.FileSystemReader(tmp_path / "after").read_metadata().state_dict_metadata["layers.0.moe.experts.w2"].chunks
    assert [(c.offsets[0], c.sizes[0]) for c in chunks] == [(0, 6), (6, 6)]
    after, _ = load(tmp_path / "after", grown_config(grown_config(arguments(), plan), again))
    assert torch.equal(after.layers["0"].moe.experts.w2, model.layers["0"].moe.experts.w2[plan.parents[0]][again.parents[0]])


def test_grown_config_refuses_another_configuration():
    plan = coppice.plan(model_of(arguments()), "2x")
    config = copy.deepcopy(arguments())
    config.moe_args.num_experts = 5
    with pytest.raises(coppice.UsageError, match="without num_experts = 4"):
        grown_config(config, plan)
    assert grown_config(arguments(), plan).moe_args.num_experts == 8
