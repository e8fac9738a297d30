"""The scores of watch against gradients by hand, and what may go wrong."""

import json
import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from runs import TOKENS, model_of, step  # noqa: E402

import coppice  # noqa: E402

BATCHES = [TOKENS, TOKENS.flip(1), TOKENS.roll(3, 1)]


def layers_of(model):
    return [layer.mlp.experts for layer in model.model.layers]


def loss_of(model, tokens):
    return model(input_ids=tokens, labels=tokens).loss


def by_hand(model, batches):
    """Gradients of each batch, by parameter, from autograd alone."""
    out = []
    for tokens in batches:
        model.zero_grad()
        loss_of(model, tokens).backward()
        out.append([{"fc1": e.gate_up_proj.grad.double().flatten(1), "fc2": e.down_proj.grad.double().flatten(1)} for e in layers_of(model)])
    model.zero_grad()
    return out


def metric(scores, name, linear, layer):
    return torch.tensor(json.loads(scores.to_json())["metrics"][name][linear]["sum"][str(layer)], dtype=torch.float64)


def check_against_hand(model, scores, gradients, rtol=1e-5):
    for layer, experts in enumerate(layers_of(model)):
        for linear, weight in (("fc1", experts.gate_up_proj), ("fc2", experts.down_proj)):
            each = torch.stack([batch[layer][linear] for batch in gradients])
            g, w = each.mean(0), weight.detach().double().flatten(1)
            wanted = {
                "weight_norm": w.norm(dim=1), "gradient_squared": g.square().sum(1), "gradient_norm": g.norm(dim=1),
                "weight_grad_product": w.norm(dim=1) * g.norm(dim=1), "taylor": (w * g).sum(1).abs(),
                "batch_fisher": each.square().sum(2).sum(0),
                "approx_fisher": g.square().sum(1) / (each.square().mean(0).norm(dim=1) + 1e-8),
            }
            for name, values in wanted.items():
                assert torch.allclose(metric(scores, name, linear, layer), values, rtol=rtol), (name, linear, layer)


def test_metrics_equal_those_by_hand():
    model = model_of("mixtral")
    gradients = by_hand(model, BATCHES)
    with coppice.watch(model) as scores:
        for tokens in BATCHES:
            loss_of(model, tokens).backward()  # gradients add up: the scores see each pass alone
    check_against_hand(model, scores, gradients)
    model.zero_grad()
    chosen = []
    handle = model.model.layers[1].mlp.gate.register_forward_hook(lambda _, __, output: chosen.append(output))
    for tokens in BATCHES:
        loss_of(model, tokens)
    handle.remove()
    load = sum(torch.bincount(indices.flatten(), minlength=4).double() / indices.numel() for _, _, indices in chosen)
    mass = sum(torch.zeros(4, dtype=torch.float64).index_add(0, i.flatten(), g.detach().double().flatten()) for _, g, i in chosen)
    assert torch.allclose(metric(scores, "load", "fc1", 1), load) and torch.allclose(metric(scores, "gate_mass", "fc2", 1), mass)


def test_passes_of_one_batch_are_summed_before_they_are_squared():
    model = model_of("mixtral")
    gradients = [[{k: (a[k] + b[k]) for k in a} for a, b in zip(*by_hand(model, BATCHES[:2]), strict=True)]]
    for way in ("passes", "end_batch"):
        with coppice.watch(model, passes=2 if way == "passes" else None) as scores:
            for tokens in BATCHES[:2]:
                loss_of(model, tokens).backward()
            if way == "end_batch":
                scores.end_batch()
        check_against_hand(model, scores, gradients, rtol=1e-4)


def test_reads_main_grad():
    model = model_of("mixtral")
    gradients = by_hand(model, BATCHES[:1])
    for experts in layers_of(model):
        for parameter in experts.parameters():
            parameter.main_grad = torch.zeros_like(parameter)
    with pytest.raises(coppice.UsageError, match="main_grad"), coppice.watch(model):
        pass
    with coppice.watch(model, passes=None) as scores:
        loss_of(model, BATCHES[0]).backward()
        for experts in layers_of(model):
            for parameter in experts.parameters():
                parameter.main_grad += parameter.grad
        scores.end_batch()
    check_against_hand(model, scores, gradients)


def test_takes_second_moments_from_the_optimizer():
    model = model_of("mixtral")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0)
    step(model, optimizer)
    with coppice.watch(model, optimizer=optimizer) as scores:
        loss_of(model, BATCHES[1]).backward()
    assert json.loads(scores.to_json())["second_moment"] == "trainer"
    down = layers_of(model)[0].down_proj
    wanted = down.grad.double().flatten(1).square().sum(1) / (optimizer.state[down]["exp_avg_sq"].double().flatten(1).norm(dim=1) + 1e-8)
    assert torch.allclose(metric(scores, "approx_fisher", "fc2", 0), wanted)


def test_scores_choose_the_parents(tmp_path):
    model = model_of("mixtral")
    with coppice.watch(model) as scores:
        loss_of(model, TOKENS).backward()
    plan = coppice.plan(model, "2x", scores=scores, select="greedy", metric="gradient_squared")
    best = metric(scores, "gradient_squared", "fc1", 0)
    shares = best / best.sum() + metric(scores, "gradient_squared", "fc2", 0) / metric(scores, "gradient_squared", "fc2", 0).sum()
    assert plan.parents[0].count(int(shares.argmax())) == 4
    scores.save(tmp_path / "scores.json")
    assert coppice.plan(model, "2x", scores=tmp_path / "scores.json", select="greedy") == plan
    with pytest.raises(coppice.UsageError, match="output_error needs what each expert gave .*run `coppice score`"):
        coppice.plan(model, "2x", scores=scores, metric="output_error")
    with pytest.raises(coppice.UsageError, match="scores of another model|scores are of another model"):
        coppice.plan(model_of("qwen3_moe"), "2x", scores=scores)


def test_experts_in_one_matrix_are_told_apart():
    model = model_of("dbrx")  # [experts * width, model]
    with coppice.watch(model) as scores:
        loss_of(model, TOKENS).backward()
    down = model.transformer.blocks[0].ffn.experts.mlp.w2
    assert down.dim() == 2
    found = metric(scores, "gradient_squared", "fc2", 0)
    assert torch.allclose(found, down.grad.double().unflatten(0, (len(found), -1)).flatten(1).square().sum(1))


def test_gradient_checkpointing_counts_tokens_once():
    model = model_of("mixtral").train()
    with coppice.watch(model) as plain:
        loss_of(model, TOKENS).backward()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with coppice.watch(model) as again:
        loss_of(model, TOKENS).backward()
    for name in ("load", "gate_mass", "gradient_squared"):
        assert torch.allclose(metric(plain, name, "fc1", 0), metric(again, name, "fc1", 0), rtol=1e-4)


def test_leaves_the_model_alone():
    model = model_of("mixtral")
    with coppice.watch(model):
        loss_of(model, TOKENS).backward()
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(p._backward_hooks for p in model.parameters())


def test_says_what_is_wrong():
    model = model_of("mixtral")
    with pytest.raises(coppice.UsageError, match="no backward pass"), coppice.watch(model):
        pass
    with pytest.raises(coppice.UsageError, match="1 of the 2 backward passes"), coppice.watch(model, passes=2):
        loss_of(model, TOKENS).backward()
    with pytest.raises(coppice.UsageError, match="no expert has a gradient"), coppice.watch(model, passes=None) as scores:
        scores.end_batch()
    with pytest.raises(coppice.UsageError, match="model: an int; wanted a torch module"):
        coppice.expand_(3, coppice.plan(model, "2x"))
    with pytest.raises(coppice.UsageError, match="passes: 0"):
        coppice.watch(model, passes=0)
    with pytest.raises(ZeroDivisionError), coppice.watch(model) as scores:
        raise ZeroDivisionError
    with pytest.raises(coppice.UsageError, match="there are none"):
        scores.to_json()
