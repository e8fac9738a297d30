"""`coppice inspect` as a user meets it."""

import json
import os
import pathlib
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = BUILD / "coppice"
GENERATE = BUILD / "tests" / "families_generate"


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture
def model(tmp_path):
    done = run(GENERATE, tmp_path / "m", "qwen3_moe", "BF16")
    assert done.returncode == 0, done.stderr
    return tmp_path / "m"


def test_results_go_to_stdout_alone(model):
    done = run(COPPICE, "inspect", model, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["tokenizer"] is False
    (model / "tokenizer.json").write_text("{}")
    assert json.loads(run(COPPICE, "inspect", model, "--json").stdout)["tokenizer"] is True


def test_lineage_is_told(model, tmp_path):
    before = json.loads(run(COPPICE, "inspect", model, "--json").stdout)
    assert run(COPPICE, "expand", model, tmp_path / "grown", "--experts", "6").returncode == 0
    text = run(COPPICE, "inspect", tmp_path / "grown").stdout
    assert "lineage, oldest first:" in text
    assert "4 -> 6 experts" in text and before["digest"][:12] in text
    after = json.loads(run(COPPICE, "inspect", tmp_path / "grown", "--json").stdout)
    assert after["lineage"]["steps"][0]["experts"] == [4, 6]
    assert after["parameters"]["experts"] * 2 == before["parameters"]["experts"] * 3


def test_routing_that_others_do_not_compute_is_warned_of(model):
    (model / "coppice.json").write_text('{"coppice_lineage": 1, "routing": "lineage_unique", "share": 0.5, "steps": []}')
    done = run(COPPICE, "inspect", model)
    assert done.returncode == 0
    assert "lineage-unique routing (share 0.5)" in done.stderr


def test_what_does_not_fit_is_named_and_ends_with_status_3(model):
    config = json.loads((model / "config.json").read_text())
    cases = [
        (dict(num_experts=5), ["6 missing: model.layers.0.mlp.experts.4.gate_proj.weight"]),
        (dict(hidden_size=-1), ["config.json", "'hidden_size' is -1"]),
        (dict(model_type="qwen3_mo"), ["did you mean 'qwen3_moe'"]),
        (dict(num_local_experts=8), ["'num_local_experts' is 8", "'num_experts'"]),
    ]
    for change, wanted in cases:
        (model / "config.json").write_text(json.dumps({**config, **change}))
        done = run(COPPICE, "inspect", model)
        assert done.returncode == 3, done.stderr
        assert done.stdout == ""
        for text in wanted:
            assert text in done.stderr


def test_a_directory_that_is_not_there_ends_with_status_3(tmp_path):
    done = run(COPPICE, "inspect", tmp_path / "nothing")
    assert done.returncode == 3 and "nothing" in done.stderr
