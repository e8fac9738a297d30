"""`coppice verify --function` against transformers: what it says of two models is what they compute there."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
CORE = os.environ.get("COPPICE_CORE_BIN")
LENGTH = 32


def run(*arguments, program=BUILD / "coppice"):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def done(*arguments):
    told = run(*arguments, "--json")
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("function")
    sizes = ["vocab_size=120", "model_dim=32", "num_heads=2", "num_layers=2", "max_positions=64"]
    for family in ("olmoe", "llama"):
        experts = ["num_experts=4", "top_k=3", "expert_width=16"] if family == "olmoe" else []
        subprocess.run([BUILD / "tests" / "families_generate", directory / family, family, "F32", *sizes, *experts], check=True, capture_output=True)
    ids = torch.randint(0, 120, (4 * LENGTH + 1,), generator=torch.Generator().manual_seed(2)).tolist()
    write_tokens(directory / "t", ids)
    (directory / "ids.json").write_text(json.dumps(ids))
    return directory


def compute(model, ids):
    """Logits of every token, and the router logits of every layer."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    options = {"output_router_logits": True} if reference.config.model_type == "olmoe" else {}
    with torch.no_grad():
        out = reference(torch.tensor(ids[:-1]).view(-1, LENGTH), **options)
    return out.logits.flatten(0, 1).double(), [layer.double() for layer in out.get("router_logits") or []]


def check(told, before, after, ids):
    (b, _), (a, routers) = compute(before, ids), compute(after, ids)
    target = torch.tensor(ids[1:]).unsqueeze(1)
    p, q = b.log_softmax(-1), a.log_softmax(-1)
    assert told["tokens"] == len(ids) - 1
    assert told["loss_before"] == pytest.approx(-p.gather(1, target).mean().item(), rel=1e-5)
    assert told["loss_after"] == pytest.approx(-q.gather(1, target).mean().item(), rel=1e-5)
    assert told["kl"] == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-3, abs=1e-6)
    assert told["largest_logit_difference"] == pytest.approx((a - b).abs().max().item(), rel=1e-3, abs=1e-4)
    assert told["largest_logit"] == pytest.approx(b.abs().max().item(), rel=1e-4)
    return routers


def test_copies_at_plain_top_k_are_reported_as_transformers_has_them(files, tmp_path):
    ids = json.loads((files / "ids.json").read_text())
    done("expand", files / "olmoe", tmp_path / "out", "--experts", "2x", "--router-init", "copy")
    told = done("verify", files / "olmoe", tmp_path / "out", "--function", files / "t", "--sequence-length", LENGTH)["function"]
    routers = check(told, files / "olmoe", tmp_path / "out", ids)
    # expert e and e + 4 are siblings; of equal logits the lower expert is chosen first
    parents = [[len({e % 4 for e in row.argsort(descending=True, stable=True)[:3].tolist()}) for row in layer] for layer in routers]
    assert told["effective_top_k"] == pytest.approx(sum(map(sum, parents)) / sum(map(len, parents)))
    assert told["effective_top_k"] == 2 and told["ties"] == 1, "of top-3 over pairs one sibling is left out"


def test_an_exact_growth_moves_nothing(files, tmp_path):
    ids = json.loads((files / "ids.json").read_text())
    done("expand", files / "olmoe", tmp_path / "out", "--experts", "2x", "--router-init", "copy", "--top-k", "scale")
    told = done("verify", files / "olmoe", tmp_path / "out", "--function", files / "t", "--sequence-length", LENGTH)["function"]
    check(told, files / "olmoe", tmp_path / "out", ids)
    assert told["largest_logit_difference"] < 1e-5 * told["largest_logit"] and told["kl"] < 1e-6
    assert told["effective_top_k"] == 3 and told["ties"] == 0


@pytest.mark.parametrize("scale, exact", [("down", True), ("cbrt", False)])
def test_a_conversion_says_how_far_it_starts_from_the_dense_model(files, tmp_path, scale, exact):
    ids = json.loads((files / "ids.json").read_text())
    done("convert", files / "llama", tmp_path / "out", "--to", "mixtral", "--experts", 8, "--granularity", 4, "--scale", scale)
    for memory in ("1GB", "1KB"):
        told = done("verify", files / "llama", tmp_path / "out", "--function", files / "t", "--sequence-length", LENGTH, "--max-memory", memory)["function"]
        check(told, files / "llama", tmp_path / "out", ids)
        assert (told["largest_logit_difference"] < 1e-5 * told["largest_logit"]) == exact and "effective_top_k" not in told
    text = run("verify", files / "llama", tmp_path / "out", "--function", files / "t", "--sequence-length", LENGTH).stdout
    assert "function over 128 tokens: loss " in text and "largest difference of a logit" in text


def test_what_cannot_be_run_or_has_no_effect_is_refused(files, tmp_path):
    done("expand", files / "olmoe", tmp_path / "out", "--experts", "2x")
    models = [files / "olmoe", tmp_path / "out"]
    for arguments, status, words in [
            (["--max-tokens", 5], 2, "there is no --function"), (["--sequence-length", 5], 2, "there is no --function"), (["--max-memory", "1GB"], 2, "there is no --function"),
            (["--function", files / "none"], 3, "none"), (["--function", files / "t", "--sequence-length", 65], 2, "1 to the models' 64"),
            (["--function", files / "t", "--sequence-length", 0], 2, "1 to the models' 64")]:
        told = run("verify", *models, *arguments)
        assert told.returncode == status and words in told.stderr and told.stdout == "", (arguments, told)
    if CORE:
        told = run("verify", *models, "--function", files / "t", program=CORE)
        assert told.returncode == 3 and "core build" in told.stderr


def test_a_model_that_cannot_be_accounted_for_is_not_run(files, tmp_path):
    done("expand", files / "olmoe", tmp_path / "out", "--experts", "2x")
    weights = tmp_path / "out" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5:] = bytes(255 - byte for byte in data[-5:])
    weights.write_bytes(data)
    told = run("verify", files / "olmoe", tmp_path / "out", "--function", files / "t", "--sequence-length", LENGTH, "--json")
    assert told.returncode == 1 and "function" not in json.loads(told.stdout)
