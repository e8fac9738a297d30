"""The package to test: COPPICE_PACKAGE, or what tools/build_python leaves in the tree. The processes that tests start find it too."""

import os
import pathlib
import sys

PACKAGE = os.environ.get("COPPICE_PACKAGE", str(pathlib.Path(__file__).parents[2] / "build/python/package"))
sys.path.insert(0, PACKAGE)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PACKAGE, os.environ.get("PYTHONPATH")]))
