"""The notebooks run, and print what they show."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import notebook_runs  # noqa: E402
from ranks import run_ranks  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d[\d.e+-]*")


def shown(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return "".join(text for cell in cells for output in cell.get("outputs", []) for text in output["text"])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_prints_what_it_shows(notebook, tmp_path):
    (tmp_path / "tests").symlink_to(REPOSITORY / "tests")
    (found,) = run_ranks(notebook_runs.printed, notebook, tmp_path, ranks=1)
    assert NUMBER.sub("#", found) == NUMBER.sub("#", shown(notebook))  # times and losses differ between machines


def test_there_is_one_for_each_framework():
    assert {path.stem for path in NOTEBOOKS} == {"megatron", "torchtitan", "transformers"}


def test_a_cell_that_fails_is_an_error(tmp_path):
    broken = tmp_path / "broken.ipynb"
    broken.write_text(json.dumps({"cells": [{"cell_type": "code", "source": ["1 / 0"]}]}))
    done = subprocess.run([sys.executable, REPOSITORY / "tools/run_notebook", broken], capture_output=True, text=True)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr
