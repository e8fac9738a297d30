"""Model directories and the folders beside outputs as somebody else may have prepared them: what leads out, waits or is not a file is refused at
once, and nothing outside is read, written or removed."""

import fcntl
import gzip
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = os.environ.get("COPPICE_CORE_BIN", BUILD / "coppice")  # the core starts faster
GENERATE = BUILD / "tests" / "families_generate"
SECRET = "root:x:0:0 of somebody else"


def coppice(*arguments, **options):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=60, **options)


def generate(directory, family):
    subprocess.run([GENERATE, directory, family, "BF16"], check=True, timeout=120)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An expanded model with a lineage, and a dense one."""
    root = tmp_path_factory.mktemp("models")
    generate(root / "small", "mixtral")
    assert coppice("expand", root / "small", root / "moe", "--experts", "2x").returncode == 0
    generate(root / "dense", "qwen3")
    for directory in (root / "moe", root / "dense"):
        (directory / "tokenizer.json").write_text("{}")
        (directory / "tokenizer_config.json").write_text("{}")
        (directory / "generation_config.json").write_text("{}")
    return root


@pytest.fixture
def model(models, tmp_path):
    return shutil.copytree(models / "moe", tmp_path / "m")


HOSTILE = ("link", "pipe", "directory")


def put(directory, name, kind):
    path = directory / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if kind == "link":  # from whatever depth
        (directory.parent / "secret").write_text(SECRET)
        path.symlink_to(directory.parent / "secret")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()


def expect_refusal(done, *words, status=3):
    assert done.returncode == status, done.stderr
    assert [line.startswith("coppice: error: ") for line in done.stderr.splitlines()].count(True) == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert SECRET not in done.stderr + done.stdout


READ_BY = {  # what each command reads of MODEL
    "expand": ["config.json", "coppice.json", "model.safetensors", "trainer/trainer.json", "tokenizer.json", "README.md", "other.json"],
    "inspect": ["config.json", "coppice.json", "model.safetensors"],
    "convert": ["config.json", "coppice.json", "model.safetensors", "tokenizer.json", "README.md"],
    "verify": ["config.json", "model.safetensors"],
}
NEVER_FOLDERS = ["config.json", "coppice.json", "model.safetensors", "trainer/trainer.json"]  # other folders are carried
# Every kind by one command; by the others what would make them wait for ever. ModelDirectory's own tests have all kinds for all calls.
CASES = [("expand", name, kind) for name in READ_BY["expand"] for kind in HOSTILE if kind != "directory" or name in NEVER_FOLDERS]
CASES += [(command, name, "pipe") for command, names in READ_BY.items() if command != "expand" for name in names]


@pytest.mark.parametrize("command,name,kind", CASES)
def test_a_file_of_the_model_that_is_none_is_refused_at_once(models, tmp_path, command, name, kind):
    source = shutil.copytree(models / ("dense" if command == "convert" else "moe"), tmp_path / "m")
    put(source, name, kind)
    if name.startswith("trainer/"):
        (source / "trainer" / "optimizer-00001-of-00001.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    arguments = {"expand": [source, tmp_path / "out"], "inspect": [source],
                 "convert": [source, tmp_path / "out", "--to", "qwen3_moe", "--experts", "2"], "verify": [source, models / "moe"]}[command]
    expect_refusal(coppice(command, *arguments), name.split("/")[-1] if not name.startswith("trainer/") else "trainer")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_files_given_by_name_may_not_be_pipes_either(models, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    out = tmp_path / "out"
    for arguments in (["expand", models / "moe", out, "--scores", pipe, "--select", "greedy"], ["expand", models / "moe", out, "--plan", pipe],
                      ["expand", models / "moe", out, "--family-file", pipe], ["tokenize", pipe, "--tokenizer", models / "moe", "--out", out]):
        expect_refusal(coppice(*arguments), "pipe")


def test_nothing_is_the_name_of_an_output(models):
    expect_refusal(coppice("expand", models / "moe", ""), "is empty", status=2)
    expect_refusal(coppice("convert", models / "dense", "", "--to", "qwen3_moe"), "is empty", status=2)


@pytest.mark.parametrize("linked", [True, False])
def test_a_directory_at_the_name_of_unfinished_work_is_left_alone(models, tmp_path, linked):
    work = tmp_path / ".out.tmp-work"
    project = tmp_path / "proj" if linked else work
    for name in ("model/thesis.txt", "journals/diary.txt"):
        (project / name).parent.mkdir(parents=True)
        (project / name).write_text("precious")
    if linked:
        work.symlink_to("proj")
    for more in ([], ["--resume"], ["--part", "1/2"]):
        expect_refusal(coppice("expand", models / "moe", tmp_path / "out", *more), ".out.tmp-work", status=2)
    assert sorted(p.name for p in project.rglob("*") if p.is_file()) == ["diary.txt", "thesis.txt"]


def test_what_is_stale_beside_the_new_weights_is_left_out_and_said(model, tmp_path):
    for name in ("original/model.safetensors", "params.json", "x.gguf", "trainer_state.json", ".git/HEAD", "README.md"):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text('{"num_experts": 4}')
    left = {"original/", "params.json", "x.gguf", "trainer_state.json", ".git/"}
    for more in (["--dry-run"], []):
        done = coppice("expand", model, tmp_path / "out", "--json", *more)
        assert done.returncode == 0, done.stderr
        assert {file["name"] for file in json.loads(done.stdout)["left_out"]} == left
        for name in left:
            assert f"left out: {name}" in done.stderr
    assert (tmp_path / "out" / "README.md").exists()
    assert not [name for name in left if (tmp_path / "out" / name).exists()]
    undone = coppice("expand", tmp_path / "out", tmp_path / "back", "--undo", "--json")
    assert json.loads(undone.stdout)["left_out"] == []


@pytest.mark.parametrize("names,word", [(["adapter_config.json", "adapter_model.safetensors"], "merge"),
                                        (["global_step100/mp_rank_00_model_states.pt", "latest"], "move it away"),
                                        (["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"], "move it away"),
                                        (["vision.safetensors"], "move it away"), (["optimizer.pt"], "move it away")])
def test_what_belongs_to_the_old_weights_is_refused(models, tmp_path, names, word):
    for command, source, more in (("expand", "moe", []), ("convert", "dense", ["--to", "qwen3_moe", "--experts", "2"])):
        directory = shutil.copytree(models / source, tmp_path / command)
        for name in names:
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(b"x")
        dry = ["--dry-run"] if command == "expand" else []
        expect_refusal(coppice(command, directory, tmp_path / "out", *more, *dry), word, names[0].split("/")[0])
        assert not (tmp_path / "out").exists()


def test_convert_says_that_it_leaves_an_optimizer_state_out(models, tmp_path):
    directory = shutil.copytree(models / "dense", tmp_path / "m")
    (directory / "trainer").mkdir()
    (directory / "trainer" / "trainer.json").write_text("{}")
    done = coppice("convert", directory, tmp_path / "out", "--to", "qwen3_moe", "--experts", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert [file["name"] for file in json.loads(done.stdout)["left_out"]] == ["trainer/"]


def test_the_list_of_rules_is_printed():
    rules = json.loads(coppice("list", "files", "--json").stdout)["files"]
    assert {rule["decision"] for rule in rules} == {"rewritten", "copied", "copied if it does not mention experts", "left out", "refused"}


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_the_wait_for_another_process(models, tmp_path, number):
    """A part that waits for its turn, while somebody holds the lock and does not let go."""
    alone = tmp_path / ".out.tmp-work" / "alone"
    assert coppice("expand", models / "moe", tmp_path / "out", "--part", "1/2").returncode == 0
    with alone.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = subprocess.Popen([COPPICE, "expand", models / "moe", tmp_path / "out", "--part", "2/2"], stderr=subprocess.PIPE, text=True)
        wait_for(lambda: any(os.path.realpath(fd) == str(alone) for fd in pathlib.Path(f"/proc/{waiting.pid}/fd").glob("*")))
        assert waiting.poll() is None
        waiting.send_signal(number)
        _, errors = waiting.communicate(timeout=30)
    assert waiting.returncode == 128 + number and "stopped by a signal" in errors


def test_a_packed_corpus_is_read(tmp_path):
    lines = "".join(json.dumps({"text": f"document {i} with some words in it, and a few more of them"}) + "\n" for i in range(400))
    (tmp_path / "a.jsonl").write_text(lines)
    packed = gzip.compress(lines[: len(lines) // 2].encode()) + gzip.compress(lines[len(lines) // 2:].encode())
    (tmp_path / "b.jsonl.gz").write_bytes(packed)
    trained = coppice("tokenize", tmp_path / "a.jsonl", "--train-tokenizer", tmp_path / "tok", "--vocab-size", "300", "--out", tmp_path / "a")
    assert trained.returncode == 0, trained.stderr
    done = coppice("tokenize", tmp_path / "b.jsonl.gz", "--tokenizer", tmp_path / "tok", "--out", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(packed[:-5])
    expect_refusal(coppice("tokenize", tmp_path / "b.jsonl.gz", "--tokenizer", tmp_path / "tok", "--out", tmp_path / "c"), "b.jsonl.gz", "is incomplete")
    (tmp_path / "z.jsonl").write_bytes(b"\x28\xb5\x2f\xfd....")
    expect_refusal(coppice("tokenize", tmp_path / "z.jsonl", "--tokenizer", tmp_path / "tok", "--out", tmp_path / "c"), "z.jsonl", "zstd")


EVIL = "\x1b[2J\x1b]0;title\x07 \u202e \x9b31m\nok: every tensor is accounted for\x1b[2K"


def expect_harmless(done, last=None):
    """Nothing that a terminal acts on, and no line that a file has written."""
    for text in (done.stdout, done.stderr):
        assert not [c for c in text if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) <= 0x9F or c in "\u202e\u2066"], text
    lines = (done.stdout + done.stderr).splitlines()
    assert [line for line in lines if line.startswith("ok:")] == ([last] if last else []), lines


def test_names_and_values_are_shown_and_not_acted_on(model, tmp_path):
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": EVIL}
    (model / "config.json").write_text(json.dumps(config))
    (model / f"a{EVIL}.gguf").write_bytes(b"x")
    done = coppice("inspect", model)
    assert done.returncode == 0, done.stderr
    expect_harmless(done)
    assert "\\u001b[2J" in done.stdout and "\\nok: every" in done.stdout
    seen = json.loads(coppice("inspect", model, "--json").stdout)
    assert [value for value in seen.values() if isinstance(value, str) and EVIL in value]  # it is all there, and JSON
    for arguments in (["--dry-run"], []):
        done = coppice("expand", model, tmp_path / "out", "--expert-init", "copy", *arguments)
        assert done.returncode == 0, done.stderr
        expect_harmless(done)
        assert "left out: a\\u001b[2J" in done.stderr
    expect_harmless(coppice("inspect", tmp_path / EVIL))
    expect_harmless(coppice(EVIL))


def test_no_file_writes_the_last_line_of_verify(models, tmp_path):
    before, after = shutil.copytree(models / "small", tmp_path / "before"), tmp_path / "after"
    name = "a\nok: every tensor is accounted for\x1b[2K.txt"
    (before / name).write_text("x")
    assert coppice("expand", before, after, "--experts", "2x").returncode == 0
    good = coppice("verify", before, after)
    assert good.returncode == 0
    expect_harmless(good, good.stdout.splitlines()[-1])
    (after / name).write_text("y")
    bad = coppice("verify", before, after)
    assert bad.returncode == 1
    expect_harmless(bad)
    assert "a\\nok: every tensor" in bad.stdout
    told = subprocess.run([COPPICE, "verify", before, after, "--json"], capture_output=True, timeout=60)
    assert name in "".join(json.loads(told.stdout)["problems"])


def test_a_name_that_is_no_utf8_leaves_json_whole(model, tmp_path):
    name = b"model-\x9b31m.gguf"
    pathlib.Path(os.fsdecode(os.fsencode(model) + b"/" + name)).write_text("x")
    done = subprocess.run([COPPICE, "expand", model, tmp_path / "out", "--dry-run", "--json"], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert b"\x9b" not in done.stdout + done.stderr
    assert name in [os.fsencode(file["name"]) for file in json.loads(done.stdout)["left_out"]]


# The path as the system reads it: `link/..` lies above what the link leads to.
def test_outputs_lie_where_their_path_leads(models, tmp_path):
    (tmp_path / "elsewhere" / "dir").mkdir(parents=True)
    (tmp_path / "elsewhere" / "moe").mkdir()
    model = shutil.copytree(models / "moe", tmp_path / "moe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "dir")
    (model / "sub").mkdir()
    (tmp_path / "into").symlink_to(model / "sub")
    for number, flags in enumerate(([], ["--resume"], ["--part", "1/1"])):
        out = f"link/../moe/out{number}"
        assert coppice("expand", "moe", out, *flags, cwd=tmp_path).returncode == 0
        assert (tmp_path / "elsewhere" / "moe" / f"out{number}" / "config.json").exists()
        expect_refusal(coppice("expand", "moe", "into/../out", *flags, cwd=tmp_path), "lies inside the input", status=2)
    dense = shutil.copytree(models / "dense", tmp_path / "dense")
    (tmp_path / "in_dense").symlink_to(dense)
    expect_refusal(coppice("convert", "dense", "in_dense/out", "--experts", 2, cwd=tmp_path), "lies inside the input", status=2)
    assert sorted(p.name for p in (tmp_path / "elsewhere" / "moe").iterdir()) == ["out0", "out1", "out2"]
    assert not [p for p in model.iterdir() if "out" in p.name] and not [p for p in dense.iterdir() if "out" in p.name]
