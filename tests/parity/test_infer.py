"""Families inferred from real checkpoints of transformers: what is inferred expands to the same bytes as the family's own table, or it is
refused with the rule. The sizes include those where the number of experts is the size of something else too."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import FAMILIES, differences, make_model, read, read_config  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
# By table some families place children beside their parents and others after all; the file of an inferred one does not know more.
COPIES = ("--experts", "2x", "--router-init", "copy", "--expert-init", "copy")
inferred = set()


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def expanded(source, out, *options):
    done = coppice("expand", source, out, *COPIES, *options)
    assert done.returncode == 0, done.stderr
    return read(out), read_config(out)


def with_experts(settings, experts, number):
    """The settings with another number of experts, under every key that counts them."""
    if not isinstance(settings, dict):
        return settings
    counts = {key: number for key, value in settings.items() if re.search("experts?(_num)?$", key) and "_per_" not in key and value == experts}
    return {key: counts.get(key, with_experts(value, experts, number)) for key, value in settings.items()}


# 8 is the width of a head, 32 that of the model: then the rules have to tell experts from those, or refuse.
@pytest.mark.parametrize("experts", [4, 8, 32])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_inferred_families_are_right_or_refused(family, experts, tmp_path):
    try:
        make_model(dataclasses.replace(family, settings=with_experts(family.settings, family.num_experts, experts)), tmp_path / "m")
    except Exception as error:  # the model's class checks its configuration
        pytest.skip(f"transformers makes no such model with {experts} experts: {error}")
    found = coppice("inspect", tmp_path / "m", "--infer", "--write-family", tmp_path / "f.toml")
    if found.returncode == 3:
        assert "rule" in found.stderr, found.stderr
        return
    assert found.returncode == 0, found.stderr
    inferred.add((family.name, experts))
    order = "siblings" if "num_groups_key" in (tmp_path / "f.toml").read_text() else "append"
    tensors, config = expanded(tmp_path / "m", tmp_path / "by-rules", "--family-file", tmp_path / "f.toml", "--order", order)
    wanted, wanted_config = expanded(tmp_path / "m", tmp_path / "by-table", "--order", order)
    assert not differences(wanted, tensors)
    assert config == wanted_config


def test_most_families_are_inferred():
    """Runs last: a rule that refuses everything would pass the test above."""
    assert len(inferred) >= 95, f"{len(inferred)}: {sorted({family.name for family in FAMILIES} - {name for name, _ in inferred})}"
