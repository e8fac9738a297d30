"""The two layouts in which transformers writes a family: as its released files have it, and as it is in memory, with the experts of a layer
packed (`save_pretrained(save_original_format=False)`). Expanded, both are the same model, and coppice says the same of them."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import FAMILIES, configuration, make_model, randomise, read  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
COPIES = ("--experts", "2x", "--router-init", "copy", "--expert-init", "copy")
# What transformers itself writes in memory's layout is not a model: gate_up_proj for E + Z choices beside down_proj for E experts.
NOT_IN_MEMORY = {"longcat_flash"}


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def expanded(source, out):
    done = coppice("expand", source, out, *COPIES, "--json")
    assert done.returncode == 0, done.stderr
    checked = coppice("verify", source, out)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    said = json.loads(done.stdout)
    return {key: said[key] for key in ("experts", "parameters", "active_parameters", "weight_bytes", "exact", "exactness")}


def state(family, directory):
    model, info = getattr(transformers, family.auto).from_pretrained(directory, output_loading_info=True, dtype="auto")
    assert not any(info.values()), info
    return model.state_dict()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_both_layouts_expand_to_the_same_model(family, tmp_path):
    torch.manual_seed(1)
    make_model(family, tmp_path / "files")
    torch.manual_seed(1)  # the same model again
    model = getattr(transformers, family.auto).from_config(configuration(family), dtype=torch.float32).eval()
    randomise(model)
    model.save_pretrained(tmp_path / "memory", save_original_format=False)
    if family.name in NOT_IN_MEMORY:
        refused = coppice("inspect", tmp_path / "memory")
        assert refused.returncode == 3 and "gate_up_proj" in refused.stderr
        return
    of_files, of_memory = (expanded(tmp_path / name, tmp_path / f"{name}-2x") for name in ("files", "memory"))
    assert of_memory == of_files
    files, memory = (state(family, tmp_path / f"{name}-2x") for name in ("files", "memory"))
    assert files.keys() == memory.keys()
    assert not [name for name in files if not torch.equal(files[name], memory[name])]
    packed = {name for name in read(tmp_path / "memory") if name.endswith(("experts.gate_up_proj", "experts.down_proj"))}
    assert packed <= read(tmp_path / "memory-2x").keys(), "the layout of the model before is kept"
