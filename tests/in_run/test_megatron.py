"""Megatron Core's GPT with MoE layers, its wrapper and distributed optimizer: expanded between steps and on disk, against a reference by hand."""

import math
import pathlib
import re
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
pytest.importorskip("megatron.core")
from megatron_on_cpu import EXPERTS, gpt, loss_of, make_optimizer, megatron, step, steps_of_torch_adam, whole_states, wrap  # noqa: E402
from megatron_ranks import known, move_over_two_ranks, train_on_two_ranks  # noqa: E402
from ranks import run_ranks  # noqa: E402
from runs import assert_unchanged, everything  # noqa: E402

import coppice  # noqa: E402
import coppice.dcp  # noqa: E402
from coppice.megatron import expand_megatron  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def groups():
    with megatron():
        yield


def trained(**more):
    model = gpt(**more)
    for layer in model.decoder.layers:
        layer.mlp.router.expert_bias.copy_(torch.linspace(-0.1, 0.1, EXPERTS))
    (chunk,) = wrap([model])
    optimizer = make_optimizer([chunk])
    for _ in range(3):
        step(chunk, optimizer)
    return model, chunk, optimizer


def tensors(model):
    kept = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in kept.items()}


def source(name, plan):
    """The name of what a tensor of the expanded model is a copy of, and its rows; None if all."""
    found = re.match(r"decoder\.layers\.(\d+)\.mlp\.(?:experts\.local_experts\.(\d+)\.|router\.)", name)
    if not found:
        return name, None
    parents = plan.parents[int(found.group(1))]
    if found.group(2) is None:
        return name, parents
    begin, end = found.span(2)
    return name[:begin] + str(parents[int(found.group(2))]) + name[end:], None


def check_by_hand(plan, before, states_before, after, states_after):
    for name, tensor in after.items():
        of, rows = source(name, plan)
        wanted = torch.zeros(plan.experts[1]) if "tokens_per_expert" in name else before[of][rows] if rows else before[of]
        assert torch.equal(tensor, wanted), name
    for name, state in states_after.items():
        of, rows = source(name, plan)
        assert state.keys() == states_before[of].keys()
        for key, value in state.items():
            wanted = states_before[of][key]
            assert torch.equal(value, wanted[rows] if rows and wanted.dim() else wanted), (name, key)


def test_grows_between_steps_as_by_hand_and_trains_on():
    model, chunk, optimizer = trained()
    optimizer.chained_optimizers[0].optimizer.param_groups[0]["lr"] = 2e-3
    plan = coppice.plan(chunk, "2x", router_init="copy")
    before, states_before = tensors(model), whole_states(optimizer, model)
    done = expand_megatron([chunk], plan, optimizer=optimizer, wrap=wrap, make_optimizer=make_optimizer)
    (after,) = done.chunks
    assert after.module is model and done.growths[0].experts == (4, 8)
    check_by_hand(plan, before, states_before, tensors(model), whole_states(done.optimizer, model))
    mlp = model.decoder.layers[0].mlp
    assert model.config.num_moe_experts == mlp.router.num_experts == mlp.num_local_experts == 8
    assert mlp.experts.num_local_experts == len(mlp.experts.local_experts) == mlp.token_dispatcher.num_local_experts == 8
    assert mlp.local_expert_indices == mlp.token_dispatcher.local_expert_indices == list(range(8))
    assert mlp.experts.local_experts[7].linear_fc1.weight.allreduce is mlp.experts.local_experts[3].linear_fc1.weight.allreduce
    assert done.optimizer.chained_optimizers[0].optimizer.param_groups[0]["lr"] == 2e-3
    losses = [step(after, done.optimizer) for _ in range(20)]
    assert losses[-1] < losses[0] and all(map(math.isfinite, losses))


def test_methods_give_the_bytes_of_the_functions_for_single_matrices():
    model, chunk, optimizer = trained()
    plan = coppice.plan(chunk, "2x", expert_init="copy_noise", seed=4)
    (_, copied), (_, kept) = [(n, t) for n, t in tensors(model).items() if n.startswith("decoder.layers.1.mlp.experts.local_experts.2.linear_fc")]
    expand_megatron([chunk], plan, optimizer=optimizer, wrap=wrap, make_optimizer=make_optimizer)
    core = coppice._core.PlanOfModel(plan.to_json(), coppice.describe.describe(gpt()), False)
    child = next(i for i, (parent, copy) in enumerate(core.children(1)) if (parent, copy) == (2, 1))
    gate, up, down = torch.empty(24, 32), torch.empty(24, 32), torch.empty(32, 24)
    core.grow_expert(1, child, "expert_gate", {2: copied[:24]}, gate)
    core.grow_expert(1, child, "expert_up", {2: copied[24:]}, up)
    core.grow_expert(1, child, "expert_down", {2: kept}, down)
    expert = model.decoder.layers[1].mlp.experts.local_experts[child]
    assert torch.equal(expert.linear_fc1.weight.detach(), torch.cat([gate, up])) and torch.equal(expert.linear_fc2.weight.detach(), down)
    assert not torch.equal(down, kept)


def test_a_failure_leaves_model_wrapper_and_optimizer_as_they_were():
    model, chunk, optimizer = trained()
    torch.manual_seed(1)
    twin, twin_chunk, twin_optimizer = trained()
    plan, before = coppice.plan(chunk, "2x"), everything(model)
    states_before = whole_states(optimizer, model)

    def broken(chunks):
        raise ZeroDivisionError("no optimizer")

    for way in (dict(wrap=broken, make_optimizer=make_optimizer), dict(wrap=wrap, make_optimizer=broken)):
        with pytest.raises(ZeroDivisionError):
            expand_megatron([chunk], plan, optimizer=optimizer, **way)
        assert_unchanged(before, everything(model))
        after = whole_states(optimizer, model)
        assert all(torch.equal(after[n][k], v) for n, state in states_before.items() for k, v in state.items())
    # The old wrapper and optimizer still train as those of a model that nobody touched.
    assert [step(chunk, optimizer) for _ in range(3)] == [step(twin_chunk, twin_optimizer) for _ in range(3)]


def test_watch_reads_main_grad():
    model, chunk, optimizer = trained()
    chunk.zero_grad_buffer()
    with coppice.watch(chunk.module, passes=None) as scores:
        loss_of(chunk).backward()
        scores.end_batch()
    plan = coppice.plan(chunk, 6, scores=scores)
    assert plan.select == "waterfill" and "gradient_squared" in scores.to_json() and '"load"' in scores.to_json()
    weight = model.decoder.layers[0].mlp.experts.local_experts[1].linear_fc2.weight
    import json

    found = json.loads(scores.to_json())["metrics"]["gradient_squared"]["fc2"]["sum"]["0"][1]
    assert found == pytest.approx(float(weight.main_grad.double().square().sum()), rel=1e-6)


class Grouped(torch.nn.Module):
    """Numbered weights as in Transformer Engine's GroupedLinear, which has no wheel for CPUs."""

    def __init__(self, linears):
        super().__init__()
        self.num_gemms = len(linears)
        for number, linear in enumerate(linears):
            self.register_parameter(f"weight{number}", linear.weight)


def test_grouped_weights_grow_as_a_list_of_modules():
    listed, grouped = gpt(), gpt()
    for layer in grouped.decoder.layers:
        experts = layer.mlp.experts
        for name in ("linear_fc1", "linear_fc2"):
            setattr(experts, name, Grouped([getattr(expert, name) for expert in experts.local_experts]))
        del experts.local_experts
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (listed, grouped)]
    plan = coppice.plan(listed, "1.5x", expert_init="drop_units", order="siblings")
    assert plan == coppice.plan(grouped, "1.5x", expert_init="drop_units", order="siblings")
    for model, optimizer in zip((listed, grouped), optimizers, strict=True):
        for parameter in model.parameters():
            optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": parameter.detach() * 2, "exp_avg_sq": parameter.detach().square()}
        coppice.expand_(model, plan, optimizer=optimizer)
    for a, b in zip(listed.decoder.layers, grouped.decoder.layers, strict=True):
        assert b.mlp.experts.linear_fc1.num_gemms == 6
        for number, expert in enumerate(a.mlp.experts.local_experts):
            for name in ("linear_fc1", "linear_fc2"):
                one, other = getattr(expert, name).weight, getattr(b.mlp.experts, name)._parameters[f"weight{number}"]
                assert torch.equal(one, other)
                for key in ("exp_avg", "exp_avg_sq", "step"):
                    assert torch.equal(optimizers[0].state[one][key], optimizers[1].state[other][key])
        assert list(b.mlp.experts.linear_fc1._parameters) == [f"weight{number}" for number in range(6)]


@pytest.mark.parametrize("options", [dict(router_init="copy"), dict(expert_init="copy_noise", optimizer_state="share", seed=3)])
def test_a_checkpoint_expands_as_the_model_in_memory(options, tmp_path):
    from megatron.core import dist_checkpointing

    model, chunk, optimizer = trained()
    (tmp_path / "before").mkdir()
    how = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}

    def state_of(chunk, optimizer, is_loading):
        model_state = chunk.module.sharded_state_dict()
        return {"model": model_state, "optimizer": optimizer.sharded_state_dict(model_state, is_loading=is_loading, metadata=how)}

    dist_checkpointing.save(state_of(chunk, optimizer, False), str(tmp_path / "before"))
    plan = coppice.dcp.plan_checkpoint(tmp_path / "before", "2x", **options)
    coppice.dcp.expand_checkpoint(tmp_path / "before", tmp_path / "after", plan)
    done = expand_megatron([chunk], plan, optimizer=optimizer, wrap=wrap, make_optimizer=make_optimizer)
    (fresh,) = wrap([gpt(experts=8)])
    its_optimizer = make_optimizer([fresh])
    step(fresh, its_optimizer)  # torch.optim.AdamW has no state to load into before its first step
    loaded = dist_checkpointing.load(state_of(fresh, its_optimizer, True), str(tmp_path / "after"))
    fresh.module.load_state_dict(loaded["model"])
    with steps_of_torch_adam():
        its_optimizer.load_state_dict(loaded["optimizer"])
    for name, tensor in tensors(model).items():
        if "tokens_per_expert" not in name:
            assert torch.equal(tensors(fresh.module)[name], tensor), name
    wanted, found = whole_states(done.optimizer, model), whole_states(its_optimizer, fresh.module)
    for name, state in wanted.items():
        for key, value in state.items():
            assert torch.equal(found[name][key], value), (name, key)
    assert math.isfinite(step(fresh, its_optimizer))


def test_two_ranks_with_a_divided_optimizer_are_one(tmp_path):
    """Each rank has half of the batch and half of the optimizer's state; the run is that of one rank with all."""
    run_ranks(train_on_two_ranks, tmp_path, 1)
    model = gpt()
    (chunk,) = wrap([model])
    optimizer = make_optimizer([chunk])
    for _ in range(2):
        step(chunk, optimizer)
    plan = coppice.plan(chunk, "2x", expert_init="copy_noise", seed=6)
    done = expand_megatron([chunk], plan, optimizer=optimizer, wrap=wrap, make_optimizer=make_optimizer)
    for _ in range(3):
        step(done.chunks[0], done.optimizer)
    first, second = (torch.load(tmp_path / f"result-{rank}") for rank in range(2))
    for name, parameter in model.named_parameters():
        assert torch.equal(first[name], second[name]), name
        assert torch.allclose(first[name], parameter.detach(), atol=3e-4), name


@pytest.mark.parametrize("order", ["append", "siblings"])
def test_experts_divided_over_two_ranks_move_as_those_of_one(order, tmp_path):
    run_ranks(move_over_two_ranks, tmp_path, order)
    model = gpt()
    optimizer = known(model)
    plan = coppice.plan(model, "2x", expert_init="interpolate", optimizer_state="interpolate", seed=8, order=order)
    coppice.expand_(model, plan, optimizer=optimizer)
    both = [torch.load(tmp_path / f"result-{rank}") for rank in range(2)]
    for name, parameter in model.named_parameters():
        holders = [part[name] for part in both if name in part]
        assert len(holders) == (1 if "local_experts" in name else 2), name
        for values, state in holders:
            assert torch.equal(values, parameter.detach()), name
            assert all(torch.equal(state[key], value) for key, value in optimizer.state[parameter].items()), name


def test_experts_divided_over_two_ranks_train_on(tmp_path):
    run_ranks(train_on_two_ranks, tmp_path, 2)


def test_says_what_is_wrong():
    model, chunk, optimizer = trained()
    plan = coppice.plan(chunk, "2x")
    with pytest.raises(coppice.UnsupportedError, match="optimizer: a AdamW; wanted Megatron's"):
        expand_megatron([chunk], plan, optimizer=torch.optim.AdamW(model.parameters()), wrap=wrap, make_optimizer=make_optimizer)
    with pytest.raises(coppice.UnsupportedError, match="DistributedDataParallel, which keeps the sizes"):
        coppice.expand_(chunk, plan)
    with pytest.raises(coppice.UsageError, match="parents for layer|no experts in layer|starts from"):
        expand_megatron([chunk], coppice.plan(gpt(experts=6), "2x"), optimizer=optimizer, wrap=wrap, make_optimizer=make_optimizer)
