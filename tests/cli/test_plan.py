"""`coppice plan` as a user meets it."""

import json
import os
import pathlib
import subprocess

import pytest

BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build/release"))


def generate(directory, family, *sizes):
    subprocess.run([BUILD / "tests/families_generate", directory, family, "BF16", *sizes], check=True, timeout=120)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("plan") / "m", "qwen3_moe", "num_experts=8")


def test_text_and_json_say_the_same(coppice, model):
    arguments = ["plan", model, "--step-time-before", 2.2, "--step-time-after", 4.18, "--tokens-before", "380e9", "--tokens-after", "190e9"]
    text, plan = coppice(*arguments).stdout, json.loads(coppice(*arguments, "--json").stdout)
    yours = [row for row in plan["shares"] if row["yours"]]
    assert len(yours) == 1 and abs(yours[0]["saving"] - 0.316) < 5e-4
    for sentence in [*plan["does_not_pay"], *plan["when"], *(c["source"] for c in plan["constants"])]:
        assert sentence in text


def test_sizes_are_those_of_inspect(coppice, model, tmp_path):
    plan = json.loads(coppice("plan", model, "--json").stdout)
    assert coppice("expand", model, tmp_path / "grown").returncode == 0
    for index, directory in enumerate([model, tmp_path / "grown"]):
        found = json.loads(coppice("inspect", directory, "--json").stdout)
        assert plan["parameters"][index] == found["parameters"]["total"]
        assert plan["active_parameters"][index] == found["parameters"]["active"]


def test_expand_dry_run_says_what_to_expect(coppice, model, tmp_path):
    assert "# expected gap closure" in coppice("expand", model, tmp_path / "x", "--dry-run").stdout


def test_a_cluster_is_simulated_in_text_and_json(coppice, model):
    arguments = ["plan", model, "--cluster", "nvlink4-ndr", "--gpus", "8,64", "--expert-parallel", 8, "--zero1"]
    text, cluster = coppice(*arguments).stdout, json.loads(coppice(*arguments, "--json").stdout)["cluster"]
    assert "SIMULATED for 8 h100 on nvlink4-ndr" in text and cluster["source"] in text
    assert [row["gpus"] for row in cluster["rows"]] == [8, 64]
    for row in cluster["rows"]:
        assert row["ratio"] == pytest.approx(row["after"]["seconds"] / row["before"]["seconds"])
        assert f"{row['gpus']} GPUs: a step takes " in text


def test_measured_points_are_a_cluster(coppice, model, tmp_path):
    points = tmp_path / "points.txt"
    points.write_text("".join(f"{ranks} {size:g} {(ranks - 1) * 1e-4 + size / 1e9:.9g}\n" for ranks in (2, 4) for size in (1e3, 1e6, 1e8)))
    done = coppice("plan", model, "--cluster", points, "--gpus", 2, "--zero1", "--json")
    network = json.loads(done.stdout)["cluster"]["network"]
    assert network["bytes_per_s"] == pytest.approx(1e9, rel=1e-4) and network["latency_s"] == pytest.approx(1e-4, rel=1e-4)
    points.write_text("2 1e6\n")
    done = coppice("plan", model, "--cluster", points)
    assert done.returncode == 3 and "points.txt:1" in done.stderr and done.stderr.count("\n") == 1


def test_measured_steps_predict_a_third_count(coppice, model):
    done = coppice("plan", model, "--experts", "32", "--measure", "--measure-experts", "8,16", "--measure-tokens", 128, "--measure-steps", 2, "--threads", 1, "--json")
    assert done.returncode in (0, 2), done.stderr  # so short a measurement may give a falling line, which is refused
    if done.returncode == 2:
        assert "no positive time" in done.stderr
        return
    step = json.loads(done.stdout)["step"]
    assert step["basis"] == "measured" and [experts for experts, _ in step["measured"]] == [8, 16]
    (e, s_e), (n, s_n) = step["measured"]
    assert step["seconds"][1] == pytest.approx(s_e + (s_n - s_e) / (n - e) * (32 - e))


def test_numbers_of_experts_that_ranks_do_not_divide(coppice, model):
    """As the trainer places them: 9 experts on 8 ranks are two on the first one, whose bytes are said."""
    even, uneven = (json.loads(coppice("plan", model, "--experts", experts, "--data-parallel", 8, "--expert-parallel", 8, "--json").stdout)
                    for experts in (16, 9))
    assert uneven["device_bytes"][1]["total"] <= even["device_bytes"][1]["total"] < uneven["device_bytes"][1]["total"] * 1.05, "a router row a missing expert"
    assert "expert-parallel" not in coppice("plan", model, "--experts", 9, "--data-parallel", 8, "--expert-parallel", 8, "--cluster", "nvlink4-ndr").stderr


@pytest.mark.parametrize("arguments, words", [
    (["--experts", "7"], ["7", "8"]),
    (["--step-time-before", "1"], ["step-time"]),
    (["--tokens-before", "nan"], ["tokens-before"]),
    (["--device", "h10"], ["did you mean 'h100'?"]),
    (["--device", "a100", "--step-time-before", "1", "--step-time-after", "2"], ["--device", "no effect"]),
    (["--expert-parallel", "3"], ["expert-parallel: 3"]),
    (["--data-parallel", "32", "--expert-parallel", "32"], ["8 experts are fewer than the 32 ranks"]),
    (["--cluster", "nvlink4-nrd"], ["did you mean 'nvlink4-ndr'?"]),
    (["--cluster", "nvlink4-ndr", "--gpus", "12"], ["12 ranks", "nodes of 8"]),
    (["--cluster", "nvlink4-ndr", "--gpus", "4096"], ["fewer than one sequence"]),
    (["--gpus", "8"], ["--gpus", "no effect"]),
    (["--measure-steps", "3"], ["--measure-steps", "no effect"]),
    (["--measure", "--measure-experts", "8"], ["two different numbers"]),
    (["--measure", "--measure-experts", "1,8"], ["wanted at least top-K, which is 2"]),
])
def test_wrong_usage_is_one_line_with_status_2(coppice, model, arguments, words):
    done = coppice("plan", model, *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_fit_names_what_it_cannot_use(coppice, model, tmp_path):
    done = coppice("plan", model, "--fit", tmp_path)
    assert done.returncode == 3 and "metrics.jsonl" in done.stderr


def test_the_core_build_measures_nothing(core, model):
    done = core("plan", model, "--measure")
    assert done.returncode == 3 and "make build" in done.stderr
