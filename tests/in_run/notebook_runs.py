"""A notebook in a process that has nothing of others."""

import importlib.machinery
import importlib.util
import json
import os
import pathlib

TOOL = pathlib.Path(__file__).resolve().parents[2] / "tools/run_notebook"


def printed(_, notebook, folder):
    """What the cells print when tools/run_notebook runs them in a folder."""
    loader = importlib.machinery.SourceFileLoader("run_notebook", str(TOOL))
    tool = importlib.util.module_from_spec(importlib.util.spec_from_loader("run_notebook", loader))
    loader.exec_module(tool)
    os.chdir(folder)
    return "".join(text for _, text in tool.run(json.loads(notebook.read_text())))
