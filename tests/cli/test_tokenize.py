"""`coppice tokenize`: what it prints and leaves behind, and one clear sentence for each thing that can be wrong."""

import json
import os
import pathlib
import resource
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = os.environ.get("COPPICE_BIN", str(BUILD / "coppice"))

TEXT = "".join(f"{i}. The trees of the old forest grow slowly; coppicing cuts them back to a living root.\n\n" for i in range(400))


def run(*arguments, **settings):
    return subprocess.run([COPPICE, "tokenize", *map(str, arguments)], capture_output=True, text=True, timeout=300, **settings)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(TEXT)
    (tmp_path / "text" / "b.jsonl").write_text('{"text": "one"}\n{"text": "two trees"}\n')
    return tmp_path / "text"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    work = tmp_path_factory.mktemp("tokenizer")
    (work / "a.txt").write_text(TEXT)
    assert run(work / "a.txt", "--out", work / "set", "--train-tokenizer", work / "tok", "--vocab-size", 320).returncode == 0
    return work / "tok"


def files(directory):
    return sorted(p.name for p in directory.iterdir())


def test_trains_a_tokenizer_and_writes_the_set(text, tmp_path):
    done = run(text, "--out", tmp_path / "set", "--train-tokenizer", tmp_path / "tok", "--vocab-size", 320, "--json")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["documents"] == 3 and out["vocab_size"] == 320
    assert out["bytes_per_token"] == pytest.approx(out["text_bytes"] / out["tokens"])
    assert files(tmp_path) == ["set.bin", "set.idx", "set.json", "text", "tok"]
    assert files(tmp_path / "tok") == ["special_tokens_map.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    assert json.loads((tmp_path / "set.json").read_text())["tokenizer_digest"] == out["tokenizer_digest"]


def test_prints_documents_tokens_and_bytes_per_token(text, tokenizer, tmp_path):
    done = run(text, "--out", tmp_path / "set", "--tokenizer", tokenizer)
    assert done.returncode == 0, done.stderr
    assert "3 documents" in done.stdout and "tokens, vocabulary of 320" in done.stdout and "bytes per token" in done.stdout
    assert done.stdout.count("\n") == 1


def test_splits_at_blank_lines_where_asked(text, tokenizer, tmp_path):
    out = json.loads(run(text / "a.txt", "--out", tmp_path / "set", "--tokenizer", tokenizer, "--split-at-blank-lines", "--json").stdout)
    assert out["documents"] == 400


def test_reads_the_text_under_another_key(tokenizer, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": 1, "content": "trees"}\n')
    out = json.loads(run(tmp_path / "x.jsonl", "--out", tmp_path / "set", "--tokenizer", tokenizer, "--text-key", "content", "--json").stdout)
    assert out["documents"] == 1


def test_gives_the_same_bytes_on_one_core_and_on_all(text, tokenizer, tmp_path):
    one = {min(os.sched_getaffinity(0))}
    assert run(text, "--out", tmp_path / "a", "--tokenizer", tokenizer).returncode == 0
    assert run(text, "--out", tmp_path / "b", "--tokenizer", tokenizer, preexec_fn=lambda: os.sched_setaffinity(0, one)).returncode == 0
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def fails(done, status, *words):
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_bad_usage_is_exit_2_and_leaves_nothing(text, tokenizer, tmp_path):
    before = files(tmp_path)
    fails(run(text, "--tokenizer", tokenizer), 2, "--out")
    fails(run(text, "--out", tmp_path / "set"), 2, "--tokenizer", "--train-tokenizer")
    fails(run(text, "--out", tmp_path / "set", "--tokenizer", tokenizer, "--train-tokenizer", tmp_path / "t"), 2, "either")
    fails(run(text, "--out", tmp_path / "set", "--tokeniser", tokenizer), 2, "tokenizer")
    fails(run("--out", tmp_path / "set", "--tokenizer", tokenizer), 2)
    fails(run(text, "--out", tmp_path / "set", "--train-tokenizer", tmp_path / "t", "--vocab-size", 50), 2, "vocabulary size")
    assert files(tmp_path) == before


def test_an_existing_output_is_kept(text, tokenizer, tmp_path):
    assert run(text, "--out", tmp_path / "set", "--tokenizer", tokenizer).returncode == 0
    before = (tmp_path / "set.bin").read_bytes()
    fails(run(text / "b.jsonl", "--out", tmp_path / "set", "--train-tokenizer", tmp_path / "new"), 2, "exists already")
    assert (tmp_path / "set.bin").read_bytes() == before
    assert not (tmp_path / "new").exists()
    fails(run(text, "--out", tmp_path / "other", "--train-tokenizer", tokenizer), 2, str(tokenizer))


def test_bad_input_is_exit_3_and_leaves_nothing(text, tokenizer, tmp_path):
    before = files(tmp_path)
    out = ["--out", tmp_path / "set", "--tokenizer", tokenizer]
    fails(run(tmp_path / "nowhere", *out), 3, "nowhere")
    fails(run(text, "--out", tmp_path / "set", "--tokenizer", tmp_path / "nothing"), 3, "nothing", "tokenizer.json")
    (text / "c.txt").write_bytes(b"good text\xff")
    fails(run(text, *out), 3, "c.txt", "byte 9")
    (text / "c.txt").unlink()
    (text / "d.jsonl").write_text('{"text": "x"}\n{"text": \n')
    fails(run(text, *out), 3, "d.jsonl", "line 2")
    (text / "d.jsonl").write_text('{"body": "x"}\n')
    fails(run(text, *out), 3, "d.jsonl", "--text-key")
    (text / "d.jsonl").write_text("")
    fails(run(text / "d.jsonl", *out), 3, "no document")
    assert files(tmp_path) == before


def test_no_room_is_exit_4_and_leaves_nothing(text, tokenizer, tmp_path):
    (text / "a.txt").write_text(TEXT * 40)
    limit = 4096

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    fails(run(text, "--out", tmp_path / "set", "--tokenizer", tokenizer, preexec_fn=small_files, restore_signals=False), 4, "set.bin")
    assert files(tmp_path) == ["text"]


def write_program(path, lines):
    path.write_text("#!/bin/sh\n" + lines)
    path.chmod(0o755)
    return str(path)


def test_a_helper_that_cannot_work_is_exit_4_and_says_how_to_get_one(text, tokenizer, tmp_path):
    directory = tmp_path / "hf"
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tokenizer / name).read_bytes())
    out = ["--out", tmp_path / "set", "--tokenizer", directory]

    def with_python(program):
        return run(text, *out, env=os.environ | {"COPPICE_PYTHON": program})

    bare = write_program(tmp_path / "bare", f'exec "{sys.executable}" -S -I "$@"\n')  # a Python without site-packages
    killed = write_program(tmp_path / "killed", "kill -9 $$\n")
    fails(with_python("/no/such/python"), 4, "/no/such/python", "tools/setup light", "COPPICE_PYTHON")
    fails(with_python(bare), 4, "tokenizers", "tools/setup light")
    fails(with_python(killed), 4, "signal 9", "tools/setup light")
    empty = {k: v for k, v in os.environ.items() if k != "COPPICE_PYTHON"} | {"COPPICE_CACHE": str(tmp_path / "cache")}
    fails(run(text, *out, env=empty), 4, "tools/setup light")

    # One that greets and then dies in the middle of the work.
    dies = write_program(tmp_path / "dies", f'exec "{sys.executable}" -c "\nimport os, struct\n'
                         'os.write(0, b\'R\' + struct.pack(\'<Qqq\', 16, 320, 2))\nos.read(0, 1)\nos._exit(7)\n"\n')
    fails(with_python(dies), 4, "status 7")
    assert not (tmp_path / "set.bin").exists()


def test_a_tokenizer_json_that_is_none_is_exit_3(text, tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "tokenizer.json").write_text('{"version": "1.0"}')
    fails(run(text, "--out", tmp_path / "set", "--tokenizer", tmp_path / "hf"), 3, "tokenizer.json")


def test_finds_the_projects_own_virtual_environment(text, tokenizer, tmp_path):
    directory = tmp_path / "hf"
    directory.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tokenizer / name).read_bytes())
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "venv-full-0").symlink_to(sys.prefix)
    if not (cache / "venv-full-0" / ".complete").exists():
        pytest.skip("this Python is not one that tools/setup made")
    settings = {k: v for k, v in os.environ.items() if k != "COPPICE_PYTHON"} | {"COPPICE_CACHE": str(cache)}
    done = run(text, "--out", tmp_path / "helper", "--tokenizer", directory, env=settings)
    assert done.returncode == 0, done.stderr
    assert run(text, "--out", tmp_path / "native", "--tokenizer", tokenizer).returncode == 0
    assert (tmp_path / "helper.bin").read_bytes() == (tmp_path / "native.bin").read_bytes()
