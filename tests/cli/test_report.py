"""`coppice report`: the page of made-up runs, alone and in a browser."""

import json
import math
import pathlib
import random
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from browser import CHROMIUM, Browser  # noqa: E402

DOMAINS = ["c", "french", "python", "</script><script>alert(1)</script>"]
CONFIG = {"model_type": "mixtral", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
          "num_experts_per_tok": 2}


def parents_of(experts):
    return {str(layer): list(range(experts)) + [0 if layer % 2 else e for e in range(experts)] for layer in (0, 1)}


def write_run(directory, seed=0, experts=4, grow_at=None, first=1, last=40, loss=3.0, layers=2, lineage=False, validate=10, path=None):
    """A run folder with everything that the trainer logs; `grow_at`: doubles the experts after this step."""
    rng = random.Random(seed)
    directory.mkdir(parents=True)
    model = f'[model]\nexperts = {experts}\n' + (f'path = "{path}"\n' if path else "")
    (directory / "config.toml").write_text(f"{model}[train]\nseed = {seed}\nbatch_tokens = 512\n")
    after = experts * (2 if grow_at or lineage else 1)
    with open(directory / "metrics.jsonl", "w") as metrics:
        def line(**fields):
            metrics.write(json.dumps(fields) + "\n")
        for step in range(first, last + 1):
            now = loss + 4 * math.exp(-step / (last / 6)) + rng.gauss(0, 0.05)
            grown = lineage or (grow_at is not None and step > grow_at)
            of_layers = {}
            for layer in range(layers):
                of_layers[f"layer/{layer}/maxvio"] = abs(rng.gauss(0.4, 0.1)) + (2 * math.exp(-(step - (grow_at or first)) / (last / 20)) if grown else 0)
                of_layers[f"layer/{layer}/load_entropy"] = 0.9 + rng.gauss(0, 0.02)
                if grown:
                    of_layers[f"layer/{layer}/sibling_cosine"] = math.exp(-(step - (grow_at or first)) / last * (1 + layer / layers))
            metric = {"loss": now, "lr": 1e-3, "tokens_seen": step * 512, "tokens_per_s": (9e3 if grown else 1e4) + rng.gauss(0, 500), "grad_norm": 1 + rng.random(),
                      "maxvio/mean": 0.5 + rng.random() / 5, "something/new": rng.random(), **of_layers}
            if step % validate == 0 or step == last:
                metric |= {f"validation/{domain}": now + 0.1 * i - (0.01 * i if grown else 0) for i, domain in enumerate(DOMAINS)}
            line(step=step, **metric)
            if step == grow_at:
                line(event="growth", step=step, experts=[experts, 2 * experts])
            if step % validate == 0:
                experts_now = 2 * experts if grown else experts
                line(event="routing", step=step, tokens={d: {str(l): [int(100 * rng.random() ** (1 + 4 * ((e + i) % 5 == 0))) for e in range(experts_now)] for l in range(layers)} for i, d in enumerate(DOMAINS)})
        line(event="checkpoint", step=last, path="x")
    checkpoint = directory / f"checkpoints/step-{last:08}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text(json.dumps({**CONFIG, "num_local_experts": after}))
    if after > experts:
        step = {"command": "expand", "version": "0.1.0", "seed": seed, "source_digest": "0" * 64, "experts": [experts, after], "order": "append", "methods": {"select": "waterfill"}, "parents": parents_of(experts)}
        (checkpoint / "coppice.json").write_text(json.dumps({"coppice_lineage": 1, "steps": [step]}))
    if grow_at:
        sums = {str(layer): [rng.random() for _ in range(experts)] for layer in range(layers)}
        scores = {"coppice_scores": 1, "model": {"digest": "0" * 64, "model_type": "mixtral", "layers": layers, "experts": experts}, "tokens": {"digest": "0" * 64, "seen": 1, "batch_tokens": 1, "batches": 1},
                  "metrics": {name: {"fc1": {"sum": sums}, "fc2": {"sum": sums}} for name in ("load", "gradient_squared")}}
        growth = directory / f"growth-step-{grow_at:08}"
        growth.mkdir()
        (growth / "scores.json").write_text(json.dumps(scores))
    return directory


def write_arms(directory, seed, losses=(3.0, 2.8, 2.7)):
    write_run(directory / "trunk", seed, last=20, loss=3.5)
    write_run(directory / "control", seed, first=21, loss=losses[0], path="trunk")
    write_run(directory / "upcycled", seed, first=21, loss=losses[1], lineage=True, path="expanded")
    write_run(directory / "scratch", seed, experts=8, loss=losses[2])


@pytest.fixture(scope="module")
def page(coppice, tmp_path_factory):
    """The page of two seeds with all arms, a run that grew on the way, and a plan."""
    directory = tmp_path_factory.mktemp("report")
    for seed in (0, 1):
        write_arms(directory / f"runs/seed-{seed}", seed, (3.0 + 0.01 * seed, 2.8, 2.7))
    write_run(directory / "runs/grown", seed=7, grow_at=20)
    steps = {"seconds": [0.05, 0.06], "basis": "given", "source": "given"}
    (directory / "plan.json").write_text(json.dumps({"coppice_plan": 1, "step": steps, "closure": {"f0": 0.262, "rms_error": 0.034}}))
    done = coppice("report", directory / "runs", "--plan", directory / "plan.json", "--out", directory / "report.html")
    assert done.returncode == 0, done.stderr
    assert "9 runs" in done.stdout
    return directory / "report.html"


def test_a_page_replaces_pages_alone(coppice, tmp_path):
    run = write_run(tmp_path / "run")
    for _ in range(2):
        assert coppice("report", run, "--out", tmp_path / "page.html").returncode == 0
    (tmp_path / "other.html").write_text("<!DOCTYPE html>\n<html><body>mine</body></html>")
    for place in (run / "config.toml", run / "metrics.jsonl", tmp_path / "other.html"):
        before = place.read_bytes()
        done = coppice("report", run, "--out", place)
        assert done.returncode == 2 and str(place) in done.stderr and "another name" in done.stderr, done.stderr
        assert place.read_bytes() == before


def test_every_section_is_there_where_its_data_is(page, coppice, tmp_path):
    text = page.read_text()
    for section in ["Results", "Loss", "Domains", "Gap closure", "The plan and what happened", "Experts", "Why these experts", "Lineage", "Training", "Configuration"]:
        assert f">{section}</h2>" in text, section
    run = write_run(tmp_path / "bare", validate=1000)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 3.5}\n')
    assert coppice("report", run, "--out", tmp_path / "bare.html").returncode == 0
    bare = (tmp_path / "bare.html").read_text()
    for section in ["Domains", "Gap closure", "The plan and what happened", "Experts", "Why these experts", "Training"]:
        assert f">{section}</h2>" not in bare, section


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt package chromium)")
@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_it_without_network_or_complaint(page, width, dark):
    with Browser() as browser:
        browser.open(page, width, dark)
        assert browser.evaluate("document.querySelectorAll('.chart .main-svg').length > 0")
        assert browser.evaluate("[...document.querySelectorAll('.chart')].every(c => c.querySelector('.main-svg'))")
        # Every other view of every chart can be drawn too.
        browser.evaluate("Promise.all(charts.map(async c => { for (c.shown = 0; c.shown < c.views.length; ++c.shown) await draw(c); c.shown = 0; }))")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        assert browser.messages == []
        assert browser.requests == []


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt package chromium)")
def test_it_prints_in_light_colours_with_every_chart(page):
    with Browser() as browser:
        browser.open(page, dark=True)
        browser.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert browser.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()") == "#ffffff"
        assert len(browser.call("Page.printToPDF")["data"]) > 100_000
        browser.evaluate("dispatchEvent(new Event('afterprint'))")
        assert browser.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper').trim()") != "#ffffff"
        assert browser.messages == []


def test_long_runs_are_thinned(coppice, tmp_path):
    write_run(tmp_path / "long", grow_at=2000, last=4000, layers=16, validate=100)
    assert coppice("report", tmp_path / "long", "--out", tmp_path / "page.html").returncode == 0
    assert (tmp_path / "page.html").stat().st_size < 9e6


@pytest.mark.parametrize("file, text, words", [
    ("metrics.jsonl", '{"step": 1}\n{oops}\n', ["metrics.jsonl:2: "]),
    ("metrics.jsonl", '{"loss": 1}\n', ["metrics.jsonl:1: ", "step"]),
    ("config.toml", "= 1\n", ["config.toml"]),
    ("checkpoints/step-00000040/coppice.json", '{"steps": [{"parents": {"0": [-1]}}]}', ["coppice.json", "coppice_lineage"]),
    ("metrics.jsonl", '{"event": "routing", "step": 1, "tokens": {"a": [1]}}\n', ["metrics.jsonl"]),
    ("growth-step-00000020/plan.toml", "[parents]\n0 = [-1]\n", ["plan.toml", "parents.0[0]: found -1"]),
    ("checkpoints/step-00000040/config.json", "{", ["config.json"]),
    ("growth-step-00000020/scores.json", '{"coppice_scores": 1, "metrics": {"load": {"fc1": {"sum": {"0": ["x"]}}}}}', ["scores.json"]),
])
def test_hostile_files_are_one_line_with_status_3(coppice, tmp_path, file, text, words):
    run = write_run(tmp_path / "run", grow_at=20)
    (run / file).write_text(text)
    done = coppice("report", run, "--out", tmp_path / "page.html")
    assert done.returncode == 3, done.stderr
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("text", ["{}", "[]", '{"coppice_plan": 1, "step": 5, "closure": {"f0": 1}}', '{"coppice_plan": 1, "step": {"basis": "given"}, "closure": {"f0": "x"}}'])
def test_a_plan_that_is_none_is_refused(coppice, tmp_path, text):
    run = write_run(tmp_path / "run")
    (tmp_path / "plan.json").write_text(text)
    done = coppice("report", run, "--plan", tmp_path / "plan.json", "--out", tmp_path / "page.html")
    assert done.returncode == 3 and "plan.json" in done.stderr and "coppice plan" in done.stderr


def test_a_folder_without_runs_says_what_a_run_is(coppice, tmp_path):
    done = coppice("report", tmp_path)
    assert done.returncode == 3 and "metrics.jsonl" in done.stderr
