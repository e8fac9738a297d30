"""Lineage-unique routing keeps the function; its share is released; and what FSDP2 gets instead of a growth."""

import pathlib
import sys

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from runs import SEVEN, TOKENS, model_of, step  # noqa: E402

import coppice  # noqa: E402
from coppice.lineage import lineage_unique  # noqa: E402


@pytest.mark.parametrize("name", [*SEVEN, "deepseek_v3_groups"])
def test_keeps_the_function(name):
    model = model_of(name).eval()
    before = model(input_ids=TOKENS).logits
    plan = coppice.plan(model, "2x" if "groups" in name else "1.5x", router_init="copy")
    coppice.expand_(model, plan)
    plain = model(input_ids=TOKENS).logits
    with lineage_unique(model, plan, seed=3):
        assert torch.allclose(model(input_ids=TOKENS).logits, before, atol=2e-5)
    assert torch.equal(model(input_ids=TOKENS).logits, plain)
    if name in ("mixtral", "qwen2_moe"):
        assert not torch.allclose(plain, before, atol=1e-3)  # which it was needed for


def test_siblings_share_their_tokens_and_learn():
    model = model_of("mixtral")
    plan = coppice.plan(model, "2x", router_init="copy")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    coppice.expand_(model, plan, optimizer=optimizer)
    seen = []
    with lineage_unique(model, plan):
        handle = model.model.layers[0].mlp.gate.register_forward_hook(lambda _, __, output: seen.append(output[2]))
        losses = [step(model, optimizer) for _ in range(10)]
        handle.remove()
    chosen = seen[0]
    assert losses[-1] < losses[0] and len(chosen.unique()) > 4
    assert all(len({plan.parents[0][e] for e in row.tolist()}) == 2 for row in chosen)


def test_the_share_is_the_part_of_tokens():
    model = model_of("mixtral").eval()
    plan = coppice.plan(model, "2x", router_init="copy")
    coppice.expand_(model, plan)
    tokens = torch.arange(4096).reshape(8, 512) % 64
    plain = model(input_ids=tokens[:, :64]).logits
    routing = lineage_unique(model, plan, share=0.0)
    assert torch.equal(model(input_ids=tokens[:, :64]).logits, plain)
    routing.share = 0.25
    part = routing.chosen_tokens(4096, 0, torch.device("cpu")).double().mean()
    assert abs(part - 0.25) < 0.03
    routing.remove()


def test_says_what_is_wrong():
    model = model_of("mixtral")
    plan = coppice.plan(model, "2x")
    with pytest.raises(coppice.UsageError, match="does not have the 8 experts of the plan"):
        lineage_unique(model, plan)
    other = model_of("phimoe")
    with pytest.raises(coppice.UnsupportedError, match="router of another kind"):
        lineage_unique(other, coppice.plan(other, "2x"))
