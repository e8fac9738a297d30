"""The pages of the frameworks, followed from the first line to the last: each block of Python, each file, each command."""

import math
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import one_rank  # noqa: E402
from runs import program  # noqa: E402

import coppice  # noqa: E402
import coppice.dcp  # noqa: E402

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"


def run(words, torchrun):
    """A command of a page."""
    command, *rest = [word for word in words if "=" not in word or word.startswith("-")]
    if command == "coppice":
        done = program(*rest)
        assert done.returncode == 0, done.stderr
    elif command == "coppice-dcp":
        assert coppice.dcp.main(rest) == 0
    elif command == "torchrun":
        torchrun(rest)
    elif command != "pip":
        subprocess.run([command, *rest], check=True)


def follow(page, capsys, torchrun=None):
    """The names that the page's Python leaves. A block that begins with the name of a file is that file."""
    text = (DOCS / page).read_text()
    names = {"__name__": "__main__"}
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M):
        file = re.match(r"# (\w+\.\w+)\n", block)
        if file:
            pathlib.Path(file.group(1)).write_text(block)
        elif language == "python":
            exec(compile(block, page, "exec"), names)
        elif not language:
            for line in block.replace("\\\n", "").splitlines():
                run(shlex.split(line), torchrun)
    printed, at = capsys.readouterr().out, 0
    shown = re.findall(r"^print\(.*\)  # ([\d(].*)$", text, re.M)
    assert shown
    for line in shown:
        at = printed.index(line + "\n", at)
    return names


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_transformers(here, capsys):
    names = follow("transformers.md", capsys)
    assert names["losses"][-1] < names["losses"][0]
    steps = {int(state["step"]) for state in names["trainer"].optimizer.state.values()}
    assert names["trainer"].state.global_step == 30 and steps == {30} and names["model"].config.num_local_experts == 24
    assert coppice.inspect(here / "grown", progress=False).experts == 24


def test_torchtitan(here, monkeypatch, capsys):
    pytest.importorskip("torchtitan")
    import torchtitan_on_cpu

    monkeypatch.syspath_prepend(here)
    trainers = []

    def torchrun(words):
        trainers.append(torchtitan_on_cpu.start(words[words.index("torchtitan.train") + 1 :]))

    with torchtitan_on_cpu.torchtitan():
        names = follow("torchtitan.md", capsys, torchrun)
    before, after = trainers
    assert before.step == after.step == 40 and before.model_args.moe_args.num_experts == 4 and after.model_args.moe_args.num_experts == 8
    assert after.dataloader.at == 40 and {int(state["step"]) for state in after.optimizers.optimizers[0].state.values()} == {40}
    assert names["losses"][-1] < names["losses"][0]


def test_megatron(here, monkeypatch, capsys):
    pytest.importorskip("megatron.core")
    import megatron_on_cpu

    for name, value in one_rank.variables().items():
        monkeypatch.setenv(name, value)
    with megatron_on_cpu.on_cpu():
        try:
            names = follow("megatron.md", capsys)
        finally:
            megatron_on_cpu.leave_groups()
    assert names["losses"][-1] < names["losses"][0] and all(map(math.isfinite, names["losses"]))
    assert coppice.dcp.plan_checkpoint(here / "grown/iter_0000015", "2x").experts == (16, 32)
