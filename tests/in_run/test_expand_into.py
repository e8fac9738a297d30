"""expand_into in one process: the bytes of expand_, for plain tensors. Ranks are in test_sharded.py."""

import pathlib
import sys
import warnings

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from runs import FAMILIES, TOKENS, assert_unchanged, bits, everything, model_of  # noqa: E402

import coppice  # noqa: E402
from coppice.transformers import grown_config  # noqa: E402


def trained(name, make, dtype=torch.float32):
    model = model_of(name, dtype)
    optimizer = make(model.parameters())
    more = {"decoder_input_ids": TOKENS} if FAMILIES[name].bidirectional else {}
    for _ in range(2):
        model(input_ids=TOKENS, labels=TOKENS, **more).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def with_masters(parameters):
    """An optimizer that keeps an fp32 master of each bf16 parameter, which says more than the parameter."""
    parameters = list(parameters)
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    for number, parameter in enumerate(parameters):
        torch.manual_seed(number)
        master = parameter.detach().float() + torch.rand_like(parameter, dtype=torch.float32) * 1e-4
        optimizer.state[parameter] = {"master": master, "exp_avg": torch.randn_like(master), "step": 7}
    return optimizer


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3, amsgrad=True)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)


def check(model, optimizer, make, plan):
    larger = type(model)._from_config(grown_config(model, plan), dtype=next(model.parameters()).dtype)
    larger_optimizer = make(larger.parameters())
    before = everything(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        growth = coppice.expand_into(model, larger, plan, optimizer=optimizer, larger_optimizer=larger_optimizer)
        assert_unchanged(before, everything(model, optimizer))
        assert growth == coppice.expand_(model, plan, optimizer=optimizer)
    assert everything(larger)[4] == everything(model)[4]
    found, wanted = dict(larger.named_parameters()), dict(model.named_parameters())
    assert found.keys() == wanted.keys()
    for name, parameter in wanted.items():
        assert torch.equal(bits(found[name]), bits(parameter)), name
        states = larger_optimizer.state.get(found[name], {}), optimizer.state.get(parameter, {})
        assert list(states[0]) == list(states[1]), name
        for key, value in states[1].items():
            same = torch.equal(bits(states[0][key]), bits(value)) if isinstance(value, torch.Tensor) else states[0][key] == value
            assert same, (name, key)
    for (name, buffer), (its, other) in zip(model.named_buffers(), larger.named_buffers(), strict=True):
        assert name == its and torch.equal(buffer, other), name


@pytest.mark.parametrize("name,make,dtype,options", [
    ("mixtral", adamw, torch.bfloat16, dict(expert_init="copy_noise", router_init="copy_noise", optimizer_state="share")),
    ("mixtral", with_masters, torch.bfloat16, dict(expert_init="drop_upcycle", optimizer_state="interpolate")),
    ("nllb_moe", adamw, torch.float32, dict(optimizer_state="reset", order="siblings")),
    ("deepseek_v3", sgd, torch.float32, dict(experts="1.5x", expert_init="orthogonal")),
    ("gpt_oss", adamw, torch.float32, dict(split=2)),
])
def test_has_the_bytes_of_expand_in_place(name, make, dtype, options):
    model, optimizer = trained(name, make, dtype)
    if make is with_masters:
        optimizer.state.clear()
        optimizer = with_masters(model.parameters())
    plan = coppice.plan(model, **({} if "split" in options else {"experts": "2x"}) | options, seed=3)
    check(model, optimizer, make if make is not with_masters else lambda p: torch.optim.SGD(p, lr=3.0), plan)


def test_needs_no_optimizer():
    model = model_of("qwen3_moe")
    plan = coppice.plan(model, "2x")
    larger = type(model)(grown_config(model.config, plan))
    coppice.expand_into(model, larger, plan)
    coppice.expand_(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), larger.parameters(), strict=True))


def test_a_schedule_goes_on_as_the_page_says():
    def schedule_of(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def run(optimizer, schedule):
        rates = []
        for _ in range(3):
            optimizer.step()
            rates.append(optimizer.param_groups[0]["lr"])
            schedule.step()
        return rates

    model = model_of("mixtral")
    optimizer = adamw(model.parameters())
    schedule = schedule_of(optimizer)
    run(optimizer, schedule)
    plan = coppice.plan(model, "2x")
    larger = type(model)(grown_config(model, plan))
    larger_optimizer = adamw(larger.parameters())
    its_schedule = schedule_of(larger_optimizer)
    coppice.expand_into(model, larger, plan, optimizer=optimizer, larger_optimizer=larger_optimizer)
    its_schedule.load_state_dict(schedule.state_dict())
    assert run(larger_optimizer, its_schedule) == run(optimizer, schedule)


def test_looks_inside_containers_of_optimizers():
    """torchtitan's container has groups and an empty state of its own."""

    class Container(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizers = [optimizer]
            super().__init__([p for group in optimizer.param_groups for p in group["params"]], {})

    model, optimizer = trained("mixtral", adamw)
    plan = coppice.plan(model, "2x")
    router = model.model.layers[0].mlp.gate.weight
    coppice.expand_(model, plan, optimizer=Container(optimizer))
    assert optimizer.state[router]["exp_avg"].shape == router.shape


def test_grown_config_refuses_another_model():
    plan = coppice.plan(model_of("glm4_moe"), "2x")
    with pytest.raises(coppice.UsageError, match="the plan does not fit"):
        grown_config(model_of("mixtral").config, plan)
