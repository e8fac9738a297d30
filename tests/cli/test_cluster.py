"""`coppice cluster` as a user meets it; what it computes is in tests/parity/test_convert.py."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from token_files import write_tokens  # noqa: E402

BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build" / "release"))


def coppice(*arguments):
    return subprocess.run([BUILD / "coppice", *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cluster")
    for family in ("llama", "mixtral"):
        subprocess.run([BUILD / "tests" / "families_generate", directory / family, family, "BF16", "vocab_size=96"], check=True, capture_output=True)
    for name, ids in {"t": [i * 7 % 96 for i in range(600)], "large": [95, 96] * 200}.items():
        write_tokens(directory / name, ids)
    return directory


def cluster(files, *arguments, model="llama", tokens="t"):
    given = {"--tokens": 512, "--sequence-length": 16, **dict(zip(arguments[::2], arguments[1::2]))}
    return coppice("cluster", files / model, files / tokens, *[word for pair in given.items() for word in pair])


def test_writes_rows_that_convert_takes_and_says_how_even_they_are(files, tmp_path):
    done = cluster(files, "--clusters", 4, "--out", tmp_path / "rows.safetensors")
    assert done.returncode == 0, done.stderr
    assert "layers with 4 rows each, from 512 tokens" in done.stdout and "largest cluster" in done.stdout
    made = coppice("convert", files / "llama", tmp_path / "out", "--experts", 4, "--top-k", 2, "--router-rows", tmp_path / "rows.safetensors")
    assert made.returncode == 0, made.stderr
    checked = coppice("verify", files / "llama", tmp_path / "out")
    assert checked.returncode == 0 and checked.stdout.splitlines()[-1] == "ok: every tensor is accounted for", checked.stdout
    weights = tmp_path / "out" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    router = next(name for name in json.loads(data[8:begin]) if name.endswith("block_sparse_moe.gate.weight"))
    data[begin + json.loads(data[8:begin])[router]["data_offsets"][0]] ^= 1
    weights.write_bytes(data)
    checked = coppice("verify", files / "llama", tmp_path / "out")
    assert checked.returncode == 1 and f"'{router}': its rows are not those that were read from a file" in checked.stdout, checked.stdout


def test_the_bytes_depend_on_the_seed_and_not_on_threads(files, tmp_path):
    for name, arguments in {"a": [], "b": ["--threads", 1], "c": ["--threads", 3], "d": ["--seed", 1]}.items():
        done = cluster(files, "--clusters", 4, "--out", tmp_path / name, *arguments)
        assert done.returncode == 0, done.stderr
    a, b, c, d = [(tmp_path / name).read_bytes() for name in "abcd"]
    assert a == b == c and a != d


@pytest.mark.parametrize("arguments, settings, status, words", [
    ([], {"model": "mixtral"}, 3, ["mixtral", "routers already"]),
    (["--clusters", 1], {}, 2, ["clusters: 1", "at least 2 and at most the number of tokens"]),
    (["--clusters", 513], {}, 2, ["clusters: 513"]),
    (["--tokens", 500], {}, 2, ["tokens: 500", "multiple"]),
    (["--sequence-length", 0], {}, 2, ["sequence-length: 0"]),
    (["--std", 0], {}, 2, ["std: 0"]),
    (["--dtype", "f16"], {}, 2, ["dtype: 'f16'", "f32 or bf16"]),
    ([], {"tokens": "large"}, 3, ["96"]),
    ([], {"tokens": "none"}, 3, ["none"]),
])
def test_bad_input_is_said_and_leaves_what_was_there(files, tmp_path, arguments, settings, status, words):
    (tmp_path / "rows").write_text("mine")
    done = cluster(files, "--out", tmp_path / "rows", *arguments, **settings)
    assert done.returncode == status, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("coppice: error: ")]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0]
    assert (tmp_path / "rows").read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["rows"]


def test_rows_replace_rows_alone(files, tmp_path):
    (tmp_path / "notes").write_text("mine")
    for place in (tmp_path / "notes", files / "llama" / "model-00001-of-00003.safetensors", files / "llama" / "rows", files / "mixtral" / "model-00001-of-00003.safetensors"):
        before = place.read_bytes() if place.exists() else None
        done = cluster(files, "--clusters", 4, "--out", place)
        assert done.returncode == 2 and str(place) in done.stderr and "another name" in done.stderr, done.stderr
        assert (place.read_bytes() if place.exists() else None) == before
    for _ in range(2):
        assert cluster(files, "--clusters", 4, "--out", tmp_path / "rows").returncode == 0


def test_wants_to_know_where_to_write(files):
    done = cluster(files)
    assert done.returncode == 2 and "--out" in done.stderr
