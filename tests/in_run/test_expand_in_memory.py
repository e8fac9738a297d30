"""expand_ on models of transformers: the bytes of `coppice expand`, the optimizer, failures, and training that goes on."""

import copy
import math
import pathlib
import sys
import warnings

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from runs import (  # noqa: E402
    FAMILIES, SEVEN, TOKENS, assert_same_tensors, assert_unchanged, everything, family_config, model_of, program, read, saved, step)

import coppice  # noqa: E402

# Each family with another dtype, method and order, so that every kind is run.
CASES = [
    ("mixtral", torch.float32, dict(expert_init="copy_noise", router_init="copy_noise")),
    ("olmoe", torch.bfloat16, dict()),
    ("qwen2_moe", torch.bfloat16, dict(expert_init="drop_units")),
    ("qwen3_moe", torch.float32, dict(order="siblings", expert_init="interpolate")),
    ("glm4_moe", torch.bfloat16, dict(balance_bias="zero", expert_init="orthogonal")),
    ("deepseek_v3", torch.float32, dict(experts="1.5x", expert_init="permute_units")),
    ("gpt_oss", torch.bfloat16, dict(expert_init="drop_upcycle")),
    ("mixtral", torch.float32, dict(top_k="scale")),
    ("gpt_oss", torch.float32, dict(split=2)),
    ("nllb_moe", torch.float32, dict(expert_init="copy_noise")),  # a module for each expert
    ("zaya", torch.float32, dict(expert_init="copy_noise")),  # a router with another choice
]


@pytest.mark.parametrize("name,dtype,options", CASES, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(CASES)])
def test_saves_the_bytes_that_the_command_writes(name, dtype, options, tmp_path):
    model = model_of(name, dtype)
    saved(model, tmp_path / "before")
    plan = coppice.plan(model, **({} if "split" in options else {"experts": "2x"}) | options, seed=3)
    plan.save(tmp_path / "plan.toml")
    done = program("expand", tmp_path / "before", tmp_path / "expanded", "--plan", tmp_path / "plan.toml")
    assert done.returncode == 0, done.stderr
    growth = coppice.expand_(model, plan)
    assert growth.experts == plan.experts and growth.parameters[1] > growth.parameters[0] - (options.get("split", 0) > 0)
    found, wanted = saved(model, tmp_path / "saved"), read(tmp_path / "expanded")
    assert_same_tensors(found[0], wanted[0])
    assert found[1] == wanted[1]


def test_covers_the_seven_families_that_are_promised():
    assert set(SEVEN) <= {name for name, *_ in CASES}


@pytest.mark.parametrize("name", SEVEN)
def test_training_goes_on(name):
    model = model_of(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=name != "mixtral", fused=name == "mixtral")
    for _ in range(3):
        step(model, optimizer)
    hooked = []
    parameter = next(p for n, p in model.named_parameters() if "experts" in n)
    parameter.register_hook(lambda gradient: hooked.append(gradient.shape[0]))
    held = parameter.expand_as(parameter).grad_fn.next_functions[0][0]  # as DDP holds it
    coppice.expand_(model, coppice.plan(model, "2x"), optimizer=optimizer)
    losses = [step(model, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0] and all(map(math.isfinite, losses))
    assert hooked == [2 * FAMILIES[name].num_experts] * 20
    assert held is not None and all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())


RATE, BETAS, STEPS = 1e-4, (0.9, 0.95), 8


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, betas=BETAS)


def first_update(method):
    """A router's first update after a growth: of the originals, of the copies, and of the same model without a growth, for one gradient."""
    model = model_of("mixtral")
    optimizer = adamw(model)
    for _ in range(STEPS):
        step(model, optimizer)
    alone = copy.deepcopy(model)
    alone_optimizer = adamw(alone)
    alone_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coppice.expand_(model, coppice.plan(model, "2x", router_init="copy", optimizer_state=method), optimizer=optimizer)
    router, alone_router = (m.model.layers[0].mlp.gate.weight for m in (model, alone))
    before, alone_before = router.detach().clone(), alone_router.detach().clone()
    gradient = torch.randn_like(alone_router) * 1e-3
    alone_router.grad, router.grad = gradient, torch.cat([gradient, gradient])
    optimizer.step()
    alone_optimizer.step()
    experts = alone_router.shape[0]
    moved = router.detach() - before
    return moved[:experts], moved[experts:], alone_router.detach() - alone_before


def test_copied_moments_are_warm():
    originals, copies, alone = first_update("copy")
    assert torch.equal(originals, alone) and torch.equal(copies, alone)


def test_reset_moments_are_cold():
    originals, copies, alone = first_update("reset")
    assert torch.equal(originals, alone)
    # m = v = 0 and the step count of the parent, which the parameter holds for all: every weight moves by the same.
    steps = STEPS + 1
    first, second = ((1 - beta) / (1 - beta**steps) for beta in BETAS)
    assert torch.allclose(copies.abs(), torch.full_like(copies, RATE * first / math.sqrt(second)), rtol=0.01)
    assert (copies - alone).norm() > 0.5 * alone.norm()


def test_shared_moments_give_siblings_the_same_update():
    originals, copies, alone = first_update("share")
    assert torch.equal(originals, copies)
    assert originals.norm() == pytest.approx(float(alone.norm()), rel=0.3)  # docs/methods.md: its length stays about the same


def test_moments_equal_those_on_the_way_of_the_command():
    """Moments and masters of a packed parameter against the same functions by hand, matrix by matrix."""
    model = model_of("qwen3_moe")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step(model, optimizer)
    step(model, optimizer)
    layer = next(iter(coppice.plan(model, "2x").parents))
    down = model.model.layers[layer].mlp.experts.down_proj
    before = {key: value.clone() for key, value in optimizer.state[down].items()}
    plan = coppice.plan(model, "2x", expert_init="permute_units", optimizer_state="copy")
    weight = down.detach().clone()
    coppice.expand_(model, plan, optimizer=optimizer)
    experts = weight.shape[0]
    for child, parent in enumerate(plan.parents[layer]):
        if child < experts:
            assert torch.equal(optimizer.state[down]["exp_avg"][child], before["exp_avg"][child])
            continue
        # The moments take the permutation of the weights.
        order = [int((weight[parent] == down.detach()[child][:, [unit]]).all(0).nonzero()) for unit in range(weight.shape[2])]
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[down][key][child], before[key][parent][:, order])
    assert optimizer.state[down]["step"] == before["step"]


def grown_with_fault(monkeypatch, model, plan, optimizer, at):
    """expand_ whose `at`-th new tensor cannot be allocated; whether it was."""
    import coppice.grow_tensors as tensors

    made, real = [0], tensors.new_tensor

    def new_tensor(*arguments):
        made[0] += 1
        if made[0] == at:
            raise MemoryError("injected")
        return real(*arguments)

    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr("coppice.grow_tensors.new_tensor", new_tensor)
        patch.setattr("coppice.growth.new_tensor", new_tensor)
        try:
            coppice.expand_(model, plan, optimizer=optimizer)
        except MemoryError:
            return True
    return False


@pytest.mark.parametrize("name,options", [
    ("deepseek_v3", dict(experts="2x")), ("gpt_oss", dict(experts="2x", order="siblings", optimizer_state="share")),
    ("gpt_oss", dict(split=2)), ("nllb_moe", dict(experts="2x", optimizer_state="reset")), ("nllb_moe", dict(experts="2x", optimizer_state="share"))])
def test_a_failure_at_any_tensor_leaves_everything_as_it_was(name, options, monkeypatch):
    model = model_of(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    more = {"decoder_input_ids": TOKENS} if FAMILIES[name].bidirectional else {}
    for _ in range(2):
        optimizer.step()
        model(input_ids=TOKENS, labels=TOKENS, **more).loss.backward()
    plan, before = coppice.plan(model, **options), everything(model, optimizer)
    at = 1
    while grown_with_fault(monkeypatch, model, plan, optimizer, at):
        assert_unchanged(before, everything(model, optimizer))
        at += 1
    assert at > 10


def test_a_failure_behind_the_tensors_leaves_everything_as_it_was():
    model = model_of("mixtral")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step(model, optimizer)
    plan, before = coppice.plan(model, "2x"), everything(model, optimizer)
    kind = type(model.config)

    class Stubborn(kind):
        def __setattr__(self, key, value):
            if key == "num_local_experts" and value != 4:
                raise RuntimeError("refused")
            super().__setattr__(key, value)

    model.config.__class__ = Stubborn
    try:
        with pytest.raises(RuntimeError, match="refused"):
            coppice.expand_(model, plan, optimizer=optimizer)
    finally:
        model.config.__class__ = kind
    assert_unchanged(before, everything(model, optimizer))


def test_groups_keep_their_settings_and_order():
    model = model_of("nllb_moe")
    experts = [p for n, p in model.named_parameters() if "experts" in n]
    others = [p for n, p in model.named_parameters() if "experts" not in n]
    optimizer = torch.optim.AdamW([{"params": others, "weight_decay": 0.0}, {"params": experts, "lr": 1e-5}], lr=1e-3)
    coppice.expand_(model, coppice.plan(model, "2x"), optimizer=optimizer)
    names = {id(p): n for n, p in model.named_parameters()}
    by_group = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    assert by_group[1] == [n for n, _ in model.named_parameters() if "experts" in n] and len(by_group[1]) == 2 * len(experts)
    assert optimizer.param_groups[1]["lr"] == 1e-5 and optimizer.param_groups[0]["weight_decay"] == 0.0


def test_frozen_parameters_stay_frozen():
    model = model_of("nllb_moe")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("experts" not in name)
    coppice.expand_(model, coppice.plan(model, "2x"))
    assert all(p.requires_grad == ("experts" not in name) for name, p in model.named_parameters())


def test_other_optimizers_with_moments():
    for make in (lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9), lambda p: torch.optim.AdamW(p, amsgrad=True),
                 lambda p: torch.optim.RMSprop(p), lambda p: torch.optim.NAdam(p), lambda p: torch.optim.Adagrad(p)):
        model = model_of("mixtral")
        optimizer = make(model.parameters())
        step(model, optimizer)
        coppice.expand_(model, coppice.plan(model, "2x"), optimizer=optimizer)
        assert all(math.isfinite(step(model, optimizer)) for _ in range(2)), type(optimizer)


def test_a_compiled_model_is_compiled_again():
    model = model_of("mixtral")
    compiled = torch.compile(model, backend="eager")
    before = compiled(input_ids=TOKENS).logits
    coppice.expand_(compiled, coppice.plan(compiled, "2x", router_init="copy"))
    after = compiled(input_ids=TOKENS).logits
    assert after.shape == before.shape and torch.allclose(after, model(input_ids=TOKENS).logits, atol=1e-5)


# Errors: what was found, what was wanted, what to do.


def test_refuses_an_unknown_module():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.moe_experts = torch.nn.Linear(2, 2)

    with pytest.raises(coppice.UnsupportedError, match="no layout knows this model.*transformers.*coppice|expand the checkpoint"):
        coppice.plan(Odd(), "2x")


def test_refuses_quantised_parameters():
    model = model_of("mixtral")
    plan = coppice.plan(model, "2x")
    experts = model.model.layers[0].mlp.experts
    experts.down_proj = torch.nn.Parameter(experts.down_proj.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(coppice.UnsupportedError, match=r"layers\.0\.mlp\.experts\.down_proj: its values are torch.float8_e4m3fn; wanted"):
        coppice.expand_(model, plan)


def test_refuses_tied_experts():
    model = model_of("mixtral")
    plan = coppice.plan(model, "2x")
    layers = model.model.layers
    layers[1].mlp.experts.down_proj = layers[0].mlp.experts.down_proj
    with pytest.raises(coppice.UnsupportedError, match=r"layers\.0\.mlp.*and.*layers\.1\.mlp.* are tied"):
        coppice.expand_(model, plan)


def test_refuses_an_optimizer_with_factored_state():
    model = model_of("mixtral")
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer)
    before = everything(model, optimizer)
    with pytest.raises(coppice.UnsupportedError, match="optimizer state '.*' of .*wanted numbers and float tensors with the parameter's shape"):
        coppice.expand_(model, coppice.plan(model, "2x"), optimizer=optimizer)
    assert_unchanged(before, everything(model, optimizer))


def test_refuses_the_optimizer_of_another_model():
    model, other = model_of("mixtral"), model_of("mixtral")
    optimizer = torch.optim.AdamW(other.parameters())
    with pytest.raises(coppice.UsageError, match="trains none of the model's experts"):
        coppice.expand_(model, coppice.plan(model, "2x"), optimizer=optimizer)


def test_refuses_the_plan_of_another_model():
    plan = coppice.plan(model_of("qwen3_moe"), "2x")
    model = model_of("glm4_moe")
    with pytest.raises(coppice.UsageError, match="the plan does not fit the model"):
        coppice.expand_(model, plan)
    with pytest.raises(coppice.UsageError, match="plan: a dict; wanted"):
        coppice.expand_(model, {})


def test_refuses_wrapped_models():
    model = model_of("mixtral")
    plan = coppice.plan(model, "2x")

    class DistributedDataParallel(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module
            self.config = module.config

    with pytest.raises(coppice.UnsupportedError, match="DistributedDataParallel, which keeps the sizes"):
        coppice.expand_(DistributedDataParallel(model), plan)


# Plans.


def test_a_plan_is_data_that_may_be_edited_and_saved(tmp_path):
    model = model_of("mixtral")
    plan = coppice.plan(model.config, experts=6, seed=2**63 + 1)
    assert plan.experts == (4, 6) and plan.parents[0][:4] == [0, 1, 2, 3]
    plan.parents[2][-1] = 3
    plan.layer_methods[1] = {"expert_init": "copy_noise:lambda=0.02"}
    plan.save(tmp_path / "plan.toml")
    assert coppice.GrowthPlan.load(tmp_path / "plan.toml") == plan
    assert coppice.plan(family_config(model), experts=6, seed=2**63 + 1).parents[0] == plan.parents[0]
    growth = coppice.expand_(model, plan)
    assert growth.layers == [0, 1, 2] and model.config.num_local_experts == 6
    plan.parents[0] = [0, 1, 2, 3, 4, 9]
    with pytest.raises(coppice.FormatError, match="layer 0, expert 4"):
        plan.to_json()


def test_plan_refuses_what_it_does_not_know():
    model = model_of("mixtral")
    with pytest.raises(coppice.UsageError, match="copy_noise"):
        coppice.plan(model, "2x", expert_init="copy_nois")
    with pytest.raises(coppice.UsageError, match="scores"):
        coppice.plan(model, "2x", select="greedy")
    with pytest.raises(coppice.UsageError, match="model: an int; wanted a module"):
        coppice.plan(3)
    with pytest.raises(coppice.NotFoundError, match="no/such"):
        coppice.plan("no/such/place")
    with pytest.raises(coppice.NotFoundError, match="no/scores.json"):
        coppice.plan(model, "2x", scores="no/scores.json")
    with pytest.raises(coppice.UsageError, match="scores: a float; wanted"):
        coppice.plan(model, "2x", scores=0.5)
