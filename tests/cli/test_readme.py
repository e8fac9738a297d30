"""The commands of the README, run as they stand there."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
GROWING = (REPOSITORY / "docs/growing.md").read_text()
PAGES = ["README.md", "docs/score.md", "docs/eval.md"]  # in this order: a page uses what those before it made


def commands(page):
    blocks = re.findall(r"```\n(.*?)```", (REPOSITORY / page).read_text(), re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("coppice ")]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a MODEL that has its own tokenizer, a TEXT, and the program on the path."""
    directory = tmp_path_factory.mktemp("readme")
    program = pathlib.Path(os.environ["COPPICE_BIN"])
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    python = pathlib.Path(os.__file__).parent
    (directory / "TEXT").mkdir()
    for path in sorted(python.glob("*.py"))[:40]:
        (directory / "TEXT" / f"{path.stem}.txt").write_text(path.read_text(errors="ignore"))
    made = [["coppice", "tokenize", "TEXT", "--out", "first", "--train-tokenizer", "tokenizer", "--vocab-size", "512"],
            ["coppice", "train", "--data.train", "first", "--train.out", "base", "--train.steps", "4", "--train.batch_tokens", "1024", "--model.vocab_size", "512",
             "--model.tokenizer", "tokenizer", "--model.dim", "64", "--model.head_dim", "16", "--model.layers", "2", "--model.experts", "4", "--model.expert_width", "32"]]
    for command in made:
        subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True)
    questions = [{"context": "import", "choices": ["os", "the"], "answer": 0}, {"context": "def f(x):", "choices": ["return x", "elephant"], "answer": 0}]
    (directory / "QUESTIONS.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    shutil.copytree(directory / "base/checkpoints/step-00000004", directory / "MODEL")
    return directory, environment


def test_every_command_of_the_readme_and_of_pages_works(workshop):
    directory, environment = workshop
    assert len(commands("README.md")) >= 8, "the README lost its commands"
    for command in [command for page in PAGES for command in commands(page)]:
        done = subprocess.run(command.split(), cwd=directory, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_readme_names_every_command_and_family(workshop):
    directory, environment = workshop
    helped = subprocess.run(["coppice", "--help"], env=environment, capture_output=True, text=True).stdout
    for name in re.findall(r"^  ([a-z]+) ", helped, re.M):
        assert f"`{name}" in README, f"the README does not name the command {name}"
    families = subprocess.run(["coppice", "list", "families"], env=environment, capture_output=True, text=True).stdout
    for name in re.findall(r"^([a-z0-9_]+)  ", families, re.M):
        assert f"`{name}`" in GROWING or name in README, f"neither the README nor docs/growing.md names the family {name}"
