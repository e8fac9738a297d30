"""tools/check_layers says no where folders, targets or includes are not those of the drawing in ARCHITECTURE.md."""

import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
KERNELS, BORDER = " kernels -> io                      dist -> launch\n", "-" * 52 + " no libtorch below this line\n"


@pytest.fixture
def tree(tmp_path):
    for name in ("coppice", "python", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "ARCHITECTURE.md", tmp_path)
    return tmp_path


def check(tree):
    done = subprocess.run([sys.executable, tree / "tools/check_layers"], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stderr


def edit(tree, name, before, after):
    text = (tree / name).read_text()
    assert before in text
    (tree / name).write_text(text.replace(before, after, 1))


def test_the_tree_is_as_drawn(tree):
    assert check(tree) == ""


@pytest.mark.parametrize(
    "name, before, after, said",
    [
        ("ARCHITECTURE.md", "verify -> grow convert", "verify -> grow", "coppice/verify/CMakeLists.txt: links convert grow"),
        ("ARCHITECTURE.md", " methods -> matrix", " methods -> plan", "the arrow methods -> plan does not point down"),
        ("ARCHITECTURE.md", "output -> matrix", "", "coppice/output"),
        ("ARCHITECTURE.md", KERNELS + BORDER, BORDER + KERNELS, "coppice/kernels: has libtorch"),
        ("ARCHITECTURE.md", "output/write_model.h  ", "output/no_such_file.h  ", "there is no output/no_such_file.h"),
        ("ARCHITECTURE.md", "io/checkpoint.h partial_directory.h", "cli/main.cpp", "cli is not a room below"),
        ("coppice/plan/CMakeLists.txt", "coppice_methods", "coppice_methods coppice_output", "coppice/plan/CMakeLists.txt: links methods output"),
        ("coppice/plan/undo.h", "#pragma once", '#pragma once\n#include "coppice/grow/grow.h"', "plan/ may not use grow/"),
        ("coppice/cli/main.cpp", "#include", '#include "coppice/plan/lineage_detail.h"\n#include', "private to plan/"),
        ("coppice/step/position.cpp", "namespace", "float f(const at::Tensor& t) { return t.const_data_ptr<float>()[0]; }\nnamespace", "position.cpp:7: const_data_ptr touches"),
        ("coppice/nn/rotary.cpp", "namespace", "float f(const at::Tensor& t) { return t.item<float>(); }\nnamespace", "item<float>( touches"),
        ("coppice/nn/router.cpp", "#include", '#include "coppice/kernels/cpu/processor.h"\n#include', "private to coppice/kernels/ and to coppice/kernels/cpu/"),
        ("coppice/kernels/aten/routing.cpp", "#include", '#include "coppice/kernels/cpu/processor.h"\n#include', "private to coppice/kernels/ and to coppice/kernels/cpu/"),
        ("coppice/kernels/rope.cpp", "namespace", "bool f(const at::Tensor& t) { return t.is_cpu(); }\nnamespace", "rope.cpp:9: is_cpu() picks by device"),
        ("coppice/coppice.h", "#include", '#include "coppice/api/error_detail.h"\n#include', "coppice/coppice.h: includes coppice/api/error_detail.h"),
        ("python/bindings/module.cpp", "#include", '#include "coppice/data/tokenizer.h"\n#include', "python/bindings/module.cpp: includes coppice/data/tokenizer.h"),
        ("coppice/plan/undo.cpp", "#include", "#include <nanobind/nanobind.h>\n#include", "includes <nanobind/nanobind.h>"),
        ("coppice/families/tables/mixtral.cpp", "#include", '#include "coppice/families/match.h"\n#include', "a table may use"),
    ],
)
def test_what_differs_is_named(tree, name, before, after, said):
    edit(tree, name, before, after)
    assert said in check(tree)


def test_a_folder_that_is_not_drawn_is_named(tree):
    (tree / "coppice/attic").mkdir()
    assert "coppice/attic" in check(tree)


def test_a_folder_of_too_many_files_is_named(tree):
    for i in range(41):
        (tree / f"coppice/plan/more_{i}.h").touch()
    assert "coppice/plan: " in check(tree) and "40 at most" in check(tree)
