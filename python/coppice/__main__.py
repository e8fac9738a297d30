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


if __name__ == "__main__":
    main()
