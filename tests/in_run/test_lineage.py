"""Lineage-unique routing keeps the function; its share is released; and what FSDP2 gets instead of a growth."""

import os
import pathlib
import subprocess
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


FSDP = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[3])
from runs import model_of, everything, assert_unchanged
import coppice
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
model = model_of("mixtral")
plan = coppice.plan(model, "2x", seed=7)
other = coppice.plan(model, "2x", seed=dist.get_rank())
try:
    coppice.expand_(model, other)
except coppice.UsageError as error:
    assert "another plan than rank 0" in str(error), error
else:
    raise SystemExit("different plans were taken")
broken = model_of("mixtral")
if dist.get_rank() == 1:
    broken.model.layers[0].mlp.experts.down_proj.data = broken.model.layers[0].mlp.experts.down_proj.data.to(torch.float8_e4m3fn)
try:
    coppice.expand_(broken, plan)
except coppice.PeerError as error:
    assert dist.get_rank() == 0 and "rank 1 failed, so no rank changed its model" in str(error) and "float8" in str(error), error
except coppice.UnsupportedError:
    assert dist.get_rank() == 1
assert broken.config.num_local_experts == 4
coppice.expand_(model, plan)
rows = [torch.empty_like(model.model.layers[0].mlp.gate.weight.detach()) for _ in range(2)]
dist.all_gather(rows, model.model.layers[0].mlp.gate.weight.detach())
assert torch.equal(*rows)
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
sharded = model_of("mixtral")
fully_shard(sharded, mesh=init_device_mesh("cpu", (2,)))
try:
    coppice.expand_(sharded, plan)
except coppice.UnsupportedError as error:
    assert "sharded by fully_shard" in str(error) and "coppice-dcp" in str(error), error
else:
    raise SystemExit("a sharded model was taken")
print("fine")
"""


def test_ranks_agree_or_refuse(tmp_path):
    here = pathlib.Path(__file__).parent
    ranks = [subprocess.Popen([sys.executable, "-c", FSDP, str(rank), str(tmp_path / "store"), str(here)], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, env=os.environ) for rank in range(2)]
    for rank in ranks:
        out, errors = rank.communicate(timeout=300)
        assert rank.returncode == 0 and "fine" in out, errors[-3000:]
