"""Pages of docs/ that the program writes part of."""

import os
import pathlib
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def test_tables_are_those_of_the_program():
    done = subprocess.run([REPOSITORY / "tools/write_tables", os.environ["COPPICE_BIN"], "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
