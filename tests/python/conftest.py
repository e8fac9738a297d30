"""The wheels of tools/build_wheels, each installed into bare virtual environments of the Pythons that it is for."""

import os
import pathlib
import subprocess

import pytest

BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", "build/release"))
GENERATE = BUILD / "tests/families_generate"
ANSWERS_WITH_ITSELF = "import sys; print(sys.executable, *sys.version_info[:2])"


def wheels():
    return sorted(pathlib.Path(os.environ["COPPICE_WHEELS"]).glob("coppice-*.whl")) if "COPPICE_WHEELS" in os.environ else []


def pythons():
    """The Pythons of this machine, one for each minor version: {(3, 11): path}."""
    candidates = ["/usr/bin/python3", "python3", "python3.12", "python3.13", *sorted(pathlib.Path.home().glob(".pyenv/versions/3.*/bin/python3"))]
    found = {}
    for candidate in candidates:
        try:
            answer = subprocess.run([candidate, "-c", ANSWERS_WITH_ITSELF], capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if answer.returncode == 0:
            program, major, minor = answer.stdout.split()
            found.setdefault((int(major), int(minor)), program)
    return found


def takes(wheel, version):
    """Whether the wheel is for a Python of this version."""
    return version >= (3, 12) if "abi3" in wheel.name else version == (3, 11)


PAIRS = [(wheel, version, python) for wheel in wheels() for version, python in sorted(pythons().items()) if takes(wheel, version)]


class Environment:
    """A bare virtual environment with the wheel, used without compiler, libtorch or anything else of this machine on PATH."""

    def __init__(self, folder, wheel, python):
        self.bin = folder / "bin"
        self.variables = {"PATH": str(self.bin), "HOME": str(folder)}
        subprocess.run([python, "-m", "venv", folder], check=True, capture_output=True)
        subprocess.run([self.bin / "pip", "install", "-q", "--no-index", "--disable-pip-version-check", wheel], check=True)

    def coppice(self, *arguments, **settings):
        """Runs the console script."""
        return subprocess.run([self.bin / "coppice", *map(str, arguments)], **{"capture_output": True, "text": True, "env": self.variables, "timeout": 120, **settings})

    def python(self, script, *arguments, **settings):
        """Runs a script and gives what it printed."""
        done = subprocess.run([self.bin / "python", "-c", script, *map(str, arguments)], **{"capture_output": True, "text": True, "env": self.variables, "timeout": 120, **settings})
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session", params=PAIRS, ids=lambda pair: f"{pair[0].name.split('-')[3]}-on-{pair[1][0]}.{pair[1][1]}" if pair else "none")
def environment(request, tmp_path_factory):
    return Environment(tmp_path_factory.mktemp("venv"), request.param[0], request.param[2])


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """tiny: quick for any command; slow: takes seconds to expand with `svd_perturb` on one thread."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"tiny": [], "slow": ["num_experts=8", "model_dim=256", "expert_width=256", "num_layers=4"]}
    for name, arguments in sizes.items():
        subprocess.run([GENERATE, folder / name, "qwen3_moe", "F32", *arguments], check=True, capture_output=True)
    subprocess.run([GENERATE, folder / "dense", "qwen3", "BF16"], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def core():
    return os.environ["COPPICE_CORE_BIN"]


@pytest.fixture(scope="session")
def contents():
    """A function that gives the files of a directory."""
    return lambda folder: {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
