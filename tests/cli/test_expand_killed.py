"""`coppice expand` that is killed, continued, spread over processes, and kept to little memory."""

import hashlib
import json
import os
import pathlib
import random
import re
import signal
import struct
import subprocess
import time

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = BUILD / "coppice"
GENERATE = BUILD / "tests" / "families_generate"
SLOW = ["--experts", "4x", "--expert-init", "copy_noise", "--max-shard-bytes", "20MB"]  # of a small model: a second or so
KILLS = 20


def coppice(*arguments, **options):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options)


def told_by(*arguments):
    done = coppice(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def digests(directory):
    return {str(f.relative_to(directory)): hashlib.sha256(f.read_bytes()).hexdigest() for f in directory.rglob("*") if f.is_file()}


def state(directory):
    """All that a process could change in the files of a directory, but for their access times."""
    seen = {}
    for path in [directory, *directory.rglob("*")]:
        s = path.lstat()
        seen[str(path)] = (s.st_mode, s.st_ino, s.st_nlink, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    return seen, digests(directory)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("source") / "m"
    sizes = ["model_dim=512", "expert_width=1024", "num_experts=4", "num_layers=2"]  # matrices of 1 MiB
    subprocess.run([GENERATE, directory, "mixtral", "BF16", *sizes], check=True, timeout=300)
    (directory / "tokenizer.json").write_text("{}")
    before = state(directory)
    yield directory
    assert state(directory) == before, "the source was touched"


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory):
    """Digests of the whole output, and the seconds that it took."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    begin = time.monotonic()
    assert coppice("expand", model, out, *SLOW, "--threads", "1").returncode == 0
    seconds = time.monotonic() - begin
    assert len(list(out.glob("*.safetensors"))) > 2
    return digests(out), seconds


def start(*arguments):
    return subprocess.Popen([COPPICE, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def killed(process, seconds, out=None):
    """Kills the process after so long; false if it was done before, and then it must have ended well, or found that others had finished `out`."""
    try:
        _, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
    if process.returncode == -signal.SIGKILL:
        return True
    assert process.returncode == 0 or (out and out.exists() and "exists already" in err), err
    return False


def kill_midway(out, seconds, *arguments):
    """Kills an expansion to `out` before it is done, however fast the machine has become."""
    for share in (0.5, 0.25, 0.12, 0.06, 0.03):
        if killed(start("expand", *arguments), share * seconds):
            assert not out.exists()
            return
        subprocess.run(["rm", "-r", out], check=True)
    pytest.fail("it always was done before")


def test_killed_anywhere_and_resumed(model, undisturbed, tmp_path):
    wanted, seconds = undisturbed
    chance = random.Random(4)
    kills = 0
    for run in range(100):
        out = tmp_path / f"out{run}"
        while killed(start("expand", model, out, *SLOW, "--threads", chance.choice([1, 2, 3]), "--resume"), chance.uniform(0, seconds)):
            kills += 1
            assert not out.exists() or digests(out) == wanted, "half an output has the final name"
            if out.exists():  # killed after the last byte
                break
        assert digests(out) == wanted
        if kills >= KILLS:
            return
        subprocess.run(["rm", "-r", out], check=True)
    pytest.fail(f"only {kills} kills in 100 runs")


def kill_once_recorded(out, *arguments):
    """Kills an expansion to `out` as soon as it has recorded something as done."""
    for _ in range(20):
        process = start("expand", *arguments)
        while process.poll() is None:
            if any("done" in f.read_text() for f in out.parent.glob(f".{out.name}.tmp-work/journals/*")):
                process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL and not out.exists():
            return
        subprocess.run(["rm", "-r", out], check=True)
    pytest.fail("it always was done before")


def test_resumes_what_was_done(model, undisturbed, tmp_path):
    out = tmp_path / "out"
    kill_once_recorded(out, model, out, *SLOW, "--threads", "1", "--resume")
    assert told_by("expand", model, out, *SLOW, "--resume")["bytes_resumed"] > 0
    assert digests(out) == undisturbed[0]


def test_without_resume_the_leftovers_go(model, undisturbed, tmp_path):
    wanted, seconds = undisturbed
    out = tmp_path / "out"
    kill_midway(out, seconds, model, out, *SLOW, "--threads", "1")
    (tmp_path / ".out.tmp-work").mkdir(exist_ok=True)
    assert told_by("expand", model, out, *SLOW)["bytes_resumed"] == 0
    assert digests(out) == wanted
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_stopped_with_resume_keeps_what_is_done(model, undisturbed, tmp_path):
    wanted, seconds = undisturbed
    out = tmp_path / "out"
    process = start("expand", model, out, *SLOW, "--threads", "1", "--resume")
    while process.poll() is None and not list(tmp_path.glob(".out.tmp-work/model/*")):
        time.sleep(0.001)
    time.sleep(0.2 * seconds)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the machine is too fast for this model")
    assert process.returncode == 143
    assert not out.exists() and (tmp_path / ".out.tmp-work").is_dir()
    (journal,) = tmp_path.glob(".out.tmp-work/journals/*")
    anything_done = "\ndone " in journal.read_text()
    assert (told_by("expand", model, out, *SLOW, "--resume")["bytes_resumed"] > 0) == anything_done
    assert digests(out) == wanted


def test_changed_source_is_noticed(model, undisturbed, tmp_path):
    source = tmp_path / "m"
    subprocess.run(["cp", "-r", model, source], check=True)
    out = tmp_path / "out"
    kill_midway(out, undisturbed[1], source, out, *SLOW, "--threads", "1", "--resume")
    if not list(tmp_path.glob(".out.tmp-work/journals/*")):
        pytest.skip("killed before anything was begun")
    shard = next(source.glob("*.safetensors"))
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    done = coppice("expand", source, out, *SLOW, "--resume")
    assert done.returncode == 3 and "source has changed" in done.stderr, done.stderr
    done = coppice("expand", model, out, *SLOW, "--resume", "--seed", "1")
    assert done.returncode == 2 and "other settings" in done.stderr, done.stderr
    assert not out.exists()


@pytest.mark.parametrize("count", [2, 3])
def test_parts_fill_one_output(model, undisturbed, tmp_path, count):
    """Side by side, killed now and then and started again; the last one gives the output its name."""
    wanted, seconds = undisturbed
    out = tmp_path / "out"
    chance = random.Random(count)
    left = {i: None for i in range(1, count + 1)}
    kills = 0
    while left and not out.exists():
        for i in left:
            left[i] = start("expand", model, out, *SLOW, "--threads", "1", "--part", f"{i}/{count}")
        for i in list(left):
            limit = chance.uniform(0, seconds) if kills < 5 else 300
            if killed(left[i], limit, out):
                kills += 1
            else:
                del left[i]
    assert digests(out) == wanted
    assert left or [p.name for p in tmp_path.iterdir()] == ["out"]


def test_parts_say_who_is_missing(model, tmp_path):
    out = tmp_path / "out"
    told = told_by("expand", model, out, "--part", "2/2")
    assert told["missing_parts"] == [1] and not out.exists()
    done = coppice("expand", model, out, "--part", "1/3")
    assert done.returncode == 2 and "begun in 2 parts" in done.stderr
    last = coppice("expand", model, out, "--part", "1/2")  # which says how large the model is, not only its own share
    assert last.returncode == 0, last.stderr
    weights = re.search(r"weights +(\S+ \S+) in", coppice("inspect", out).stdout)[1]
    assert f" tensors, {weights} (" in last.stdout and " by part 1/2)" in last.stdout
    assert coppice("verify", model, out).returncode == 0


@pytest.mark.parametrize("arguments, words", [
    (["--part", "3/2"], "'3/2' is not a part"), (["--part", "all"], "'all' is not a part"), (["--part", "1/2", "--dry-run"], "writes nothing"),
    (["--resume", "--dry-run"], "writes nothing")])
def test_bad_parts(model, tmp_path, arguments, words):
    done = coppice("expand", model, tmp_path / "out", *arguments)
    assert done.returncode == 2 and words in done.stderr
    assert not list(tmp_path.iterdir())


def write_sparse_model(directory, experts, layers):
    """A mixtral of matrices of 512x2048, without its bytes: all holes."""
    subprocess.run([GENERATE, directory, "mixtral", "BF16"], check=True, timeout=120)
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    config = json.loads((directory / "config.json").read_text())
    dim, width, head, vocabulary = 512, 2048, 64, 1024
    config.update(hidden_size=dim, intermediate_size=width, num_hidden_layers=layers, num_local_experts=experts, num_attention_heads=8,
                  num_key_value_heads=8, head_dim=head, vocab_size=vocabulary)
    (directory / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": [vocabulary, dim], "model.norm.weight": [dim], "lm_head.weight": [vocabulary, dim]}
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{p}_proj.weight": [dim, dim] for p in "qkvo"}
        shapes |= {f"{name}.{n}.weight": [dim] for n in ("input_layernorm", "post_attention_layernorm")}
        shapes[f"{name}.block_sparse_moe.gate.weight"] = [experts, dim]
        for expert in range(experts):
            shapes |= {f"{name}.block_sparse_moe.experts.{expert}.{w}.weight": [dim, width] if w == "w2" else [width, dim] for w in ("w1", "w2", "w3")}
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return end


@pytest.mark.parametrize("method", ["copy", "copy_noise"])
def test_memory_does_not_grow_with_the_model(tmp_path, method):
    peaks = []
    for experts in (16, 64):
        source, out = tmp_path / f"m{experts}", tmp_path / f"out{experts}"
        size = write_sparse_model(source, experts, 2)
        assert size > experts * 12_000_000
        told = told_by("expand", source, out, "--expert-init", method, "--router-init", "copy", "--threads", "2")
        assert told["bytes_written"] > 1.9 * size
        peaks.append(told["peak_rss_bytes"] / 2**20)
        subprocess.run(["rm", "-r", out], check=True)
    assert max(peaks) < 256, peaks
    assert peaks[1] < peaks[0] + 32, peaks
