"""The command `coppice`: the core program that lies in this package takes over the process."""

import os
import pathlib
import sys


def main() -> None:
    """Become the program: same arguments, exit status and signals.

    It finds this Python in ``COPPICE_PYTHON``, unless the user has named another:
    it runs `tokenizers` there, where a model has a ``tokenizer.json``.
    """
    program = pathlib.Path(__file__).parent / "bin" / "coppice"
    os.environ.setdefault("COPPICE_PYTHON", sys.executable)
    os.execv(program, [str(program), *sys.argv[1:]])


def dcp() -> int:
    """Run ``coppice-dcp``, which needs torch."""
    try:
        from coppice.dcp import main as expand
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print("coppice-dcp: error: torch is not installed here (pip install torch)", file=sys.stderr)
        return 4
    return expand()


if __name__ == "__main__":
    main()
