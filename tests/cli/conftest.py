import os
import subprocess

import pytest


def runner(program):
    """A function that runs `program` with arguments and gives its exit status, stdout and stderr."""

    def run(*arguments, **settings):
        settings = {"capture_output": True, "text": True, "timeout": 120, **settings}
        return subprocess.run([program, *map(str, arguments)], **settings)

    return run


@pytest.fixture(scope="session")
def coppice():
    return runner(os.environ["COPPICE_BIN"])


@pytest.fixture(scope="session")
def core():
    """The build without libtorch."""
    if "COPPICE_CORE_BIN" not in os.environ:
        pytest.skip("COPPICE_CORE_BIN is not set: there is no core build to run")
    return runner(os.environ["COPPICE_CORE_BIN"])
