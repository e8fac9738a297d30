"""The command line in the wheel: the core program, on a machine that has nothing else."""

import re
import signal
import subprocess
import time

import pytest

SLOW = ["--expert-init", "svd_perturb", "--threads", "1"]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["expand", "--help"], ["list", "families"]], ids=" ".join)
def test_it_says_what_the_core_program_says(environment, core, arguments):
    assert environment.coppice(*arguments).stdout == subprocess.run([core, *arguments], capture_output=True, text=True, check=True).stdout


def test_it_ends_as_the_core_program_does(environment, core, tmp_path):
    for arguments in (["expnad"], ["expand", tmp_path / "none", tmp_path / "out"], ["train", "--config", "run.toml"]):
        ours, theirs = environment.coppice(*arguments), subprocess.run([core, *arguments], capture_output=True, text=True)
        assert (ours.returncode, ours.stderr) == (theirs.returncode, theirs.stderr)
        assert ours.returncode in (2, 3)


def test_it_writes_the_bytes_of_the_core_program(environment, core, models, tmp_path, contents):
    done = environment.coppice("expand", models / "tiny", tmp_path / "ours", "--experts", "2x")
    assert done.returncode == 0, done.stderr
    subprocess.run([core, "expand", models / "tiny", tmp_path / "theirs", "--experts", "2x", "--quiet"], check=True, capture_output=True)
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert environment.coppice("verify", models / "tiny", tmp_path / "ours").returncode == 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_it_gets_the_signals(environment, models, tmp_path, sent):
    with subprocess.Popen([environment.bin / "coppice", "expand", models / "slow", tmp_path / "out", *SLOW], env=environment.variables, stderr=subprocess.PIPE) as running:
        while not list(tmp_path.iterdir()) and running.poll() is None:
            time.sleep(0.01)
        running.send_signal(sent)
        assert running.wait(60) == 128 + sent, running.stderr.read()
    assert not list(tmp_path.iterdir())


def test_the_licences_of_what_it_brings_are_there(environment):
    """Each library that auditwheel put beside the package, and what is compiled in."""
    package = next(environment.bin.parent.glob("lib/python3*/site-packages/coppice"))
    licences = {path.stem.removeprefix("lib").removesuffix("-dev") for path in (package / "licences").glob("*.txt") if path.stat().st_size > 500}
    brought = {re.sub(r"(_train)?-\w+\.so.*", "", path.name).removeprefix("lib").replace("crypto", "ssl") for path in (package.parent / "coppice.libs").iterdir()}
    assert brought and brought | {"nanobind", "plotly", "eigen3", "cli11", "rapidjson"} <= licences, (brought, licences)


def test_it_finds_the_tokenizers_of_its_own_python(environment):
    shown = environment.python("import os, coppice.__main__ as m; os.execv = lambda *a: print(os.environ['COPPICE_PYTHON']); m.main()")
    assert shown.strip() == str(environment.bin / "python")


