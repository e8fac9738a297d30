"""The commands of the README and of the pages after it, run as they stand there, and the output that the README shows."""

import os
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
PAGES = ["README.md", "docs/workflow.md", "docs/expand.md", "docs/verify.md", "docs/score.md", "docs/eval.md"]  # a page uses what those before it made


def blocks(page):
    return re.findall(r"^```\n(.*?)^```", (REPOSITORY / page).read_text(), re.S | re.M)


def commands(page):
    return [line for block in blocks(page) for line in block.splitlines() if line.startswith("coppice ")]


def run(command, directory, environment):
    return subprocess.run(command, shell=True, cwd=directory, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def environment():
    program = pathlib.Path(os.environ["COPPICE_BIN"])
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}


def quantise(source, target):
    """The model with the matrices of its experts in fp8, one scale for each, as published fp8 models have them."""
    target.mkdir()
    tensors = {}
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for name in weights.keys():
                tensor = weights.get_tensor(name)
                if ".experts." in name:
                    scale = tensor.float().abs().max() / 448
                    tensors[f"{name}_scale_inv"] = scale.reshape(1, 1)
                    tensor = (tensor.float() / scale).to(torch.float8_e4m3fn)
                tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (target / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, environment):
    """A folder with a MODEL that has its own tokenizer, a QUANTISED one, and a TEXT."""
    directory = tmp_path_factory.mktemp("readme")
    python = pathlib.Path(os.__file__).parent
    (directory / "TEXT").mkdir()
    for path in sorted(python.glob("*.py"))[:40]:
        (directory / "TEXT" / f"{path.stem}.txt").write_text(path.read_text(errors="ignore"))
    made = ["coppice tokenize TEXT --out base-tokens --train-tokenizer tokenizer --vocab-size 512",
            "coppice train --data.train base-tokens --train.out base --train.steps 4 --train.batch_tokens 1024 --model.vocab_size 512 --model.tokenizer tokenizer"
            " --model.dim 64 --model.head_dim 16 --model.layers 2 --model.experts 4 --model.expert_width 32"]
    for command in made:
        assert run(command, directory, environment).returncode == 0, command
    questions = [{"context": "import", "choices": ["os", "the"], "answer": 0}, {"context": "def f(x):", "choices": ["return x", "elephant"], "answer": 0}]
    (directory / "QUESTIONS.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    shutil.copytree(directory / "base/checkpoints/step-00000004", directory / "MODEL")
    quantise(directory / "MODEL", directory / "QUANTISED")
    return directory


def test_every_command_of_the_readme_and_of_pages_works(workshop, environment):
    assert len(commands("README.md")) >= 3, "the README lost its commands"
    assert sum(len(commands(page)) for page in PAGES) >= 30, "the pages lost their commands"
    for command in [command for page in PAGES for command in commands(page)]:
        done = run(command, workshop, environment)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def numbers_apart(line):
    return re.sub(r"\d[\d.]*( ?[KMGT]?i?B\b| [KMB]\b)?", "#", line).replace("# files", "# file")


def test_the_readme_shows_what_the_program_prints(tmp_path, environment):
    """On a smaller checkpoint of the same script: every line of output that the README shows is printed, in that order, numbers apart. `...` stands for
    lines left out."""
    made = subprocess.run([sys.executable, REPOSITORY / "bench/checkpoint.py", tmp_path / "MODEL", "0.05"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (shown,) = (block for block in blocks("README.md") if "coppice expand" in block)
    for command, *lines in (part.splitlines() for part in re.split(r"^(?=coppice )", shown, flags=re.M) if part):
        done = run(command, tmp_path, environment)
        assert done.returncode == 0, done.stderr
        output = numbers_apart(done.stdout)
        pattern = "".join(r"(.*\n)*" if line == "..." else re.escape(numbers_apart(line)) + r"\n" for line in lines)
        assert re.fullmatch(pattern, output), f"{command}: the README shows\n{numbers_apart(chr(10).join(lines))}\nthe program prints\n{output}"


def test_pages_name_every_command_and_family(environment, tmp_path):
    listed = (REPOSITORY / "docs/commands.md").read_text()
    helped = run("coppice --help", tmp_path, environment).stdout
    for name in re.findall(r"^  ([a-z]+) ", helped, re.M):
        assert f"| `{name}" in listed, f"docs/commands.md does not name the command {name}"
    known = (REPOSITORY / "docs/families.md").read_text()
    families = run("coppice list families", tmp_path, environment).stdout
    for name in re.findall(r"^([a-z0-9_]+)  ", families, re.M):
        assert f"`{name}`" in known or re.search(rf"\b{name}\b", known), f"docs/families.md does not name the family {name}"
