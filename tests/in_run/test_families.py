"""Every family that the installed transformers can make: where its model in memory keeps experts, and what an expansion leaves."""

import pathlib
import sys

import pytest
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from runs import FAMILIES, family_models, model_of  # noqa: E402

import coppice  # noqa: E402
from coppice.modules import layout_of  # noqa: E402
from coppice.modules.site import Packed  # noqa: E402

# With packed experts of which some have no weights; with experts that two parts of the model share.
REFUSED = {"longcat_flash": "with a shape that differs from the configuration", "diffusion_gemma": "are tied"}
MADE = [family for family in FAMILIES.values() if not family.missing]


def on_meta(family):
    kind = getattr(transformers, family.auto)
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    with torch.device("meta"):
        return make(family_models.configuration(family), dtype=torch.float32)


@pytest.mark.parametrize("family", [f for f in MADE if f.name not in REFUSED], ids=lambda family: family.name)
def test_every_layer_with_experts_is_found(family):
    model = on_meta(family)
    plan = coppice.plan(model, "2x")
    sites = layout_of(model).sites(model)
    found = {path for site in sites for path, _ in site.tensors()}
    of_experts = {name for name, p in model.named_parameters() if ".experts." in name and p.dim() == 3 and "shared" not in name and "vision" not in name}
    assert of_experts <= found and {site.layer for site in sites} >= set(plan.parents)
    for site in sites:
        roles = {role for experts in site.experts for role in experts.matrices.roles}
        assert {"expert_down", "router"} <= roles | {rows.role for rows in site.rows}
        assert all(e.place.tensor.shape[0] % family.num_experts == 0 for e in site.experts if isinstance(e, Packed))
    with pytest.raises(coppice.UnsupportedError, match="is on the meta device"):
        coppice.expand_(model, plan)


@pytest.mark.parametrize("name", REFUSED)
def test_some_are_refused(name):
    model = model_of(name)
    with pytest.raises(coppice.Error, match=REFUSED[name]):
        coppice.expand_(model, coppice.plan(model, "2x"))
