"""The core as a C++ library: installed, found by a project outside the tree, and used."""

import os
import pathlib
import re
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
GENERATE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build/release")) / "tests/families_generate"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the prefix that the library was installed into, and the example built against it."""
    if "COPPICE_CORE_BIN" not in os.environ:
        pytest.skip("COPPICE_CORE_BIN is not set: there is no core build to install")
    folder = tmp_path_factory.mktemp("library")
    build = pathlib.Path(os.environ["COPPICE_CORE_BIN"]).parent
    for command in (
        ["cmake", "--install", build, "--component", "library", "--prefix", folder / "prefix"],
        ["cmake", "-S", REPOSITORY / "examples/cpp", "-B", folder / "example", "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}"],
        ["cmake", "--build", folder / "example"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_example_grows_a_model(built, core, tmp_path):
    subprocess.run([GENERATE, tmp_path / "model", "qwen3_moe", "BF16"], check=True, capture_output=True)
    done = subprocess.run([built / "example/grow", tmp_path / "model", tmp_path / "grown"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "qwen3_moe with 4 experts per layer\n4 -> 8 experts\n" in done.stdout and "ok: every tensor is accounted for" in done.stdout
    assert core("expand", tmp_path / "model", tmp_path / "of-program", "--experts", "2x", "--seed", "3").returncode == 0
    files = [path.name for path in (tmp_path / "grown").iterdir()]
    assert "model.safetensors" in files and all((tmp_path / "grown" / name).read_bytes() == (tmp_path / "of-program" / name).read_bytes() for name in files)


def test_its_errors_end_the_example_as_they_end_the_program(built, core, tmp_path):
    done = subprocess.run([built / "example/grow", tmp_path / "none", tmp_path / "out"], capture_output=True, text=True)
    program = core("inspect", tmp_path / "none")
    assert (done.returncode, done.stderr.removeprefix("grow: ")) == (program.returncode, program.stderr.removeprefix("coppice: error: "))


def test_the_installed_program_runs(built):
    assert subprocess.run([built / "prefix/bin/coppice", "--version"], capture_output=True, text=True, check=True).stdout.startswith("coppice ")


def test_public_headers_need_no_other(built):
    """Those that are installed include each other and the standard library alone."""
    include = built / "prefix/include"
    headers = {path.relative_to(include).as_posix() for path in include.rglob("*.h")}
    assert "coppice/coppice.h" in headers
    for header in headers:
        for mark, name in re.findall(r'#include ([<"])([^>"]+)[>"]', (include / header).read_text()):
            assert (name in headers) if mark == '"' else re.fullmatch(r"[a-z_]+", name), f"{header} includes {name}"


def test_nothing_but_the_public_functions_is_visible(built):
    shown = subprocess.run(["nm", "-D", "-C", "--defined-only", built / "prefix/lib/libcoppice.so"], capture_output=True, text=True, check=True).stdout
    names = [line.split(" ", 2)[2] for line in shown.splitlines()]
    assert any(name.startswith("coppice::api::expand(") for name in names)
    assert not [name for name in names if not re.match(r"(typeinfo (name )?for |vtable for )?coppice::", name) or "::detail" in name]
