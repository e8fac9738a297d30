"""The demo end to end at a small size: every file it promises, the same figures for the same seed, models that transformers loads."""

import json
import os
import pathlib
import re
import subprocess

import numpy
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

COPPICE = os.environ["COPPICE_BIN"]
SETTINGS = ["--minutes", "0.5", "--seeds", "2", "--vocab-size", "512", "--dim", "64", "--layers", "2", "--base-experts", "4", "--experts", "2x",
            "--expert-width", "32", "--select", "waterfill"]


def gather(paths, limit=700_000):
    text = ""
    for path in sorted(paths):
        text += path.read_text(errors="ignore") + "\n\n"
        if len(text) > limit:
            break
    return text[:limit]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Three domains of real text that every machine with a compiler and Python has."""
    directory = tmp_path_factory.mktemp("text")
    python = pathlib.Path(os.__file__).parent
    (directory / "python.txt").write_text(gather(python.glob("*.py")))
    (directory / "headers.txt").write_text(gather(pathlib.Path("/usr/include").rglob("*.h")))
    (directory / "prose.txt").write_text(gather([*pathlib.Path("/usr/share/common-licenses").iterdir(), *pathlib.Path("/usr/share/doc").glob("*/copyright")]))
    return directory


def run_demo(text, out, *extra):
    return subprocess.run([COPPICE, "demo", "--text", text, "--out", out, *SETTINGS, *extra], capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def demo(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    done = run_demo(text, out)
    assert done.returncode == 0, done.stderr[-2000:]
    return out, done.stdout


def test_leaves_every_intermediate_file_and_prints_the_findings(demo):
    out, printed = demo
    for name in ["demo.toml", "report.html", "tokenizer/tokenizer.model", "tokenizer/tokenizer.json", "seed-0/scores.json", "seed-0/verify.json",
                 "seed-0/expanded/coppice.json", "seed-0/trunk/metrics.jsonl", "seed-1/result.json"]:
        assert (out / name).is_file(), name
    for words in ["(jump)", "Gap closure eta", "Training time saved", "report.html"]:
        assert words in printed
    results = [json.loads((out / f"seed-{s}/result.json").read_text()) for s in (0, 1)]
    for result in results:
        uniform = numpy.log(512)
        for arm in ("trunk", "control", "upcycled", "scratch"):
            assert 0.5 < result[arm]["mean_loss"] < uniform, f"{arm} did not learn"
    assert results[0]["trunk"]["mean_loss"] != results[1]["trunk"]["mean_loss"], "seeds must differ"


def spread_text(values, decimals, unit):
    mean, low, high = (re.sub(r"^-(0\.?0*)$", r"\1", f"{x:.{decimals}f}") for x in (sum(values) / len(values), min(values), max(values)))
    return f"{mean}{unit} ({low} to {high}{unit})"


def test_the_sentence_says_what_the_run_folders_hold(demo):
    """Losses are measured again with `coppice eval` on the checkpoints that the runs left; times are those of result.json and metrics.jsonl."""
    out, printed = demo
    sentence = printed.rstrip().splitlines()[-1]
    domains = sorted((out / "data").glob("*-validation.bin"))
    gains, saved = [], []
    for seed in (0, 1):
        folder = out / f"seed-{seed}"
        loss = {}
        for arm in ("control", "upcycled"):
            checkpoint = sorted((folder / arm / "checkpoints").iterdir())[-1]
            done = subprocess.run([COPPICE, "eval", checkpoint, "--tokens", ",".join(str(d.with_suffix("")) for d in domains), "--sequence-length", "128",
                                   "--batch", "32", "--max-tokens", "65536", "--dtype", "f32", "--json"], check=True, capture_output=True, text=True)
            loss[arm] = numpy.mean([entry["loss"] for entry in json.loads(done.stdout)["files"]])
        gains.append(loss["control"] - loss["upcycled"])
        result = json.loads((folder / "result.json").read_text())
        for arm in ("trunk", "upcycled", "scratch"):
            steps = [json.loads(line) for line in (folder / arm / "metrics.jsonl").read_text().splitlines()]
            training = sum(1024 / line["tokens_per_s"] for line in steps if "tokens_per_s" in line)
            assert 0 < training <= result[arm]["train_seconds"], "the clock counts less than the steps took"
        grown = result["trunk"]["train_seconds"] + result["surgery_seconds"] + result["upcycled"]["train_seconds"]
        saved.append(100 * (1 - grown / result["scratch"]["train_seconds"]))
    better, faster = numpy.mean(gains) >= 0, numpy.mean(saved) >= 0
    said = re.search(r"Expanding 4 experts per layer to 8 after 40 % of [0-9.]+ [KM] tokens (lowered|raised) the final loss", sentence)
    assert said and said[1] == ("lowered" if better else "raised")
    assert spread_text(gains if better else [-g for g in gains], 3, " nats") in sentence
    assert spread_text(saved if faster else [-s for s in saved], 0, " %") + f" {'less' if faster else 'more'} time" in sentence
    page = (out / "report.html").read_text()
    assert page.count(sentence) == 1 and page.index(sentence) < page.index("<figure"), "the page opens with the sentence"


def test_a_finished_demo_is_read_back_and_a_cut_off_one_gives_the_same_figures(demo, text):
    out, printed = demo
    before = json.loads((out / "seed-1/result.json").read_text())
    (out / "seed-1/result.json").unlink()  # as if it had been cut off in seed 1
    done = run_demo(text, out)
    assert done.returncode == 0, done.stderr[-2000:]
    after = json.loads((out / "seed-1/result.json").read_text())
    for arm in ("trunk", "expanded", "control", "upcycled", "scratch"):
        assert after[arm]["loss"] == before[arm]["loss"]


def test_refuses_a_folder_with_other_settings(demo, text):
    out, _ = demo
    done = run_demo(text, out, "--top-k", "1")
    assert done.returncode == 2
    assert "other settings" in done.stderr


def test_report_is_self_contained(demo):
    html = (demo[0] / "report.html").read_text()
    assert not re.search(r"""<(script|link|img)[^>]*(src|href)=["']?https?:""", html)
    assert "Plotly.react(" in html and "/**\n* plotly.js" in html and html.count('class="chart"') >= 4


@pytest.mark.parametrize("model", ["seed-0/trunk/checkpoints", "seed-0/expanded", "seed-0/upcycled/checkpoints", "seed-0/scratch/checkpoints"])
def test_transformers_loads_what_came_out_and_gives_the_same_loss(demo, text, model, tmp_path):
    directory = demo[0] / model
    if directory.name == "checkpoints":
        directory = sorted(directory.iterdir())[-1]
    peer, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, dtype=torch.float32)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    prefix = demo[0] / "data" / "prose-validation"
    ids = numpy.fromfile(prefix.with_suffix(".bin"), dtype=numpy.uint16)[: 128 * 8 + 1].astype(numpy.int64)
    ours = json.loads(subprocess.run([COPPICE, "eval", directory, "--tokens", prefix, "--sequence-length", "128", "--max-tokens", "1024", "--dtype", "f32",
                                      "--json"], check=True, capture_output=True, text=True).stdout)
    inputs, targets = torch.tensor(ids[:-1]).view(8, 128), torch.tensor(ids[1:]).view(8, 128)
    with torch.no_grad():
        logits = peer(input_ids=inputs).logits
    theirs = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), targets.flatten()).item()
    assert ours["loss"] == pytest.approx(theirs, abs=2e-5)


def test_tokenizer_ids_agree_with_transformers_on_every_domain(demo, text):
    tokenizer = AutoTokenizer.from_pretrained(demo[0] / "tokenizer")
    for path in sorted((demo[0] / "data").glob("*-validation.bin")):
        ids = numpy.fromfile(path, dtype=numpy.uint16)[:2000].tolist()
        eos = tokenizer.eos_token_id
        document = ids[: ids.index(eos)] if eos in ids else ids
        decoded = tokenizer.decode(document, clean_up_tokenization_spaces=False)
        if "�" not in decoded:
            assert tokenizer.encode(decoded, add_special_tokens=False) == document


def test_selection_bias_stays_f32_in_every_checkpoint(demo):
    for file in demo[0].rglob("model*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                if name.endswith("e_score_correction_bias"):
                    assert tensors.get_slice(name).get_dtype() == "F32", f"{file}: {name}"
