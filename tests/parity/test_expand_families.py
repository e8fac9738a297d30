"""Every family grown on disk and taken to transformers: it loads without a complaint, every expert and router row is its parent's, nothing
else changed, and the logits are those that the family's routing promises (docs/families.md, "Routing classes")."""

import collections
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from family_models import (  # noqa: E402
    FAMILIES, VOCAB, differences, grown, make_model, mtp_tensors, read, read_config, rewrite, write_config)

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COPPICE = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release")) / "coppice"
COPIES = ("--router-init", "copy", "--expert-init", "copy")
COUNTS = {"2x": lambda experts: 2 * experts, "3x": lambda experts: 3 * experts, "uneven": lambda experts: experts * 3 // 2}
# One for each way in which experts, routers and their biases are stored: the others are the same code with other names, and grow to twice as many, and to
# half as many again in test_layers_may_have_parents_of_their_own.
EACH_FORM = ("mixtral", "dbrx", "gpt_oss", "jetmoe", "ernie4_5_moe", "zaya", "longcat_flash", "switch_transformers", "nllb_moe", "deepseek_v3_groups",
             "llama4", "step3p7", "inkling2", "deepseek_v4")
TOLERANCE = 1e-5  # what "exact" promises; other orders of summation: the largest seen is 6e-6

every_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
every_count = pytest.mark.parametrize(
    "family,count", [pytest.param(family, count, id=f"{family.name}-{count}") for family in FAMILIES for count in COUNTS
                     if count == "2x" or family.name in EACH_FORM])


def coppice(*arguments):
    return subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=120)


class Seen:
    """A model as transformers loaded it, not to be changed."""

    def __init__(self, family, model):
        self.family, self.model = family, model

    @functools.cached_property
    def logits(self):
        return logits(self.family, self.model)


class Grown:
    """A family's tiny model and what coppice made of it; each is made once and kept for all tests of this file."""

    def __init__(self, family, root):
        self.family, self.source = family, root / "source"
        self.root = root
        make_model(family, self.source)
        config = read_config(self.source)
        for alias in family.aliases:
            family.scoped(config)[alias] = family.num_experts
        write_config(self.source, config)

    @functools.cache
    def out(self, count):
        out = self.root / count
        wanted = COUNTS[count](self.family.num_experts)
        option = count if count.endswith("x") else wanted
        done = coppice("expand", self.source, out, "--experts", option, *COPIES, "--json")
        return out, wanted, done

    def expanded(self, count):
        """The grown directory and its number of experts. Fails the test if coppice could not make it."""
        out, wanted, done = self.out(count)
        assert done.returncode == 0, done.stderr
        return out, wanted

    def says_exact(self):
        """What coppice says of doubling the experts."""
        self.expanded("2x")
        return json.loads(self.out("2x")[2].stdout)["exact"]

    @functools.cache
    def inspected(self):
        done = coppice("inspect", self.source, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def variant(self, directory, name, **settings):
        """`directory` with other values of configuration keys, same files."""
        made = self.root / f"{directory.name}-{name}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        for file in directory.iterdir():
            os.link(file, made / file.name)
        (made / "config.json").unlink()
        config = read_config(directory)
        self.family.scoped(config).update(settings)
        write_config(made, config)
        return made

    @functools.cache
    def source_logits(self, top_k=None):
        if top_k is None:
            return self.seen(self.source).logits
        return logits(self.family, self.load(self.with_top_k(self.source, top_k)))

    @functools.cache
    def seen(self, directory):
        """What transformers makes of a directory; tests that change a model load their own."""
        return Seen(self.family, self.load(directory))

    def with_top_k(self, directory, top_k, **settings):
        return self.variant(directory, f"top-{top_k}", **{self.family.top_k: top_k}, **settings)

    def load(self, directory):
        model, info = getattr(transformers, self.family.auto).from_pretrained(directory, output_loading_info=True, dtype="auto")
        complaints = {kind: found for kind, found in info.items() if found}
        assert not complaints, complaints
        return model.eval()


def logits(family, model):
    if family.name == "llama4" and transformers.__version__.startswith("5.24."):
        pytest.skip("a forward pass of text alone raises AttributeError (image_outputs) in transformers 5.24, before an expansion too")
    tokens = torch.randint(0, VOCAB - 4, (2, 24), generator=torch.Generator().manual_seed(1))  # wrappers have image tokens at the end
    more = {"decoder_input_ids": tokens.flip(0)} if family.bidirectional else {}
    torch.manual_seed(0)  # diffusion_gemma draws tokens
    with torch.no_grad():
        return model(tokens, **more).logits


@functools.cache
def known_families():
    done = coppice("list", "families", "--json")
    assert done.returncode == 0, done.stderr
    return {row["name"] for row in json.loads(done.stdout)["families"]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    kept = {}

    def of(family):
        if family.missing:
            pytest.skip(family.missing)
        if family.text_type not in known_families():
            pytest.skip(f"this build has no family {family.text_type}; test_this_build_knows_every_family fails for it")
        if family.name not in kept:
            kept[family.name] = Grown(family, tmp_path_factory.mktemp(family.name))
        return kept[family.name]

    return of


def parents_in(directory):
    return json.loads((directory / "coppice.json").read_text())["steps"][-1]["parents"]


def test_this_build_knows_every_family():
    assert {family.text_type for family in FAMILIES} - known_families() == set()


@every_count
def test_every_tensor_is_its_parents(models, family, count):
    model = models(family)
    out, num_experts = model.expanded(count)
    parents = parents_in(out)
    for layer, of_layer in parents.items():
        copies = collections.Counter(of_layer)
        assert len(of_layer) == num_experts, layer
        assert set(copies) == set(range(family.num_experts)), layer  # nobody is lost
        assert max(copies.values()) - min(copies.values()) <= 1, layer  # `uniform`
    found = read(out)
    problems = differences(grown(family, read(model.source), parents, num_experts), found)
    assert not problems, "\n".join(problems[:20])
    assert any(len(of_layer) != family.num_experts for of_layer in parents.values())


@every_count
def test_the_configuration_changes_in_nothing_but_the_number_of_experts(models, family, count):
    model = models(family)
    out, num_experts = model.expanded(count)
    wanted = read_config(model.source)
    keys = family.scoped(wanted)
    assert keys[family.experts] == family.num_experts
    for key in (family.experts, *family.aliases):
        keys[key] = num_experts
    assert read_config(out) == wanted


# Of another number than twice the tests above see the same names, shapes and keys, so transformers loads that too.
@every_family
def test_transformers_loads_it_without_a_complaint(models, family):
    model = models(family)
    out, _ = model.expanded("2x")
    assert torch.isfinite(model.seen(out).logits).all()


# Of other numbers and unequal copies in test_layers_may_have_parents_of_their_own.
@every_family
def test_verify_accounts_for_every_tensor(models, family):
    model = models(family)
    out, _ = model.expanded("2x")
    done = coppice("verify", model.source, out)
    assert done.returncode == 0, done.stdout + done.stderr


@every_family
def test_inspect_counts_experts(models, family):
    model = models(family)
    out, twice = model.expanded("2x")
    done = coppice("inspect", out, "--json")
    assert done.returncode == 0, done.stderr
    for directory, experts, seen in ((model.source, family.num_experts, model.inspected()), (out, twice, json.loads(done.stdout))):
        assert seen["experts"] == experts
        assert seen["model_type"] == family.text_type
        on_disk = sum(tensor.numel() for tensor in read(directory).values())
        loaded = model.seen(directory).model
        learnt = sum(parameter.numel() for parameter in loaded.parameters())
        biases = sum(bias.numel() for bias in selection_biases(loaded).values())
        assert min(learnt, on_disk) - biases <= seen["parameters"]["total"] <= on_disk  # what is not learnt may count or not


# The same model as transformers has it in memory: experts in two tensors a layer, and other names.
@every_family
def test_both_layouts_expand_to_the_same_model(models, tmp_path, family):
    model = models(family)
    model.seen(model.source).model.save_pretrained(tmp_path / "memory", save_original_format=False)
    if family.name == "longcat_flash":  # what transformers writes is no model: gate and up of E + Z choices, down of E experts
        refused = coppice("inspect", tmp_path / "memory")
        assert refused.returncode == 3 and "gate_up_proj" in refused.stderr
        return
    out, num_experts = model.expanded("2x")
    done = coppice("expand", tmp_path / "memory", tmp_path / "out", "--experts", num_experts, *COPIES, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exact"] == model.says_exact()
    done = coppice("verify", tmp_path / "memory", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    files, memory = model.seen(out).model.state_dict(), model.load(tmp_path / "out").state_dict()
    assert files.keys() == memory.keys()
    assert not [name for name in files if not torch.equal(files[name], memory[name])]
    packed = {name for name in read(tmp_path / "memory") if name.endswith(("experts.gate_up_proj", "experts.down_proj"))}
    assert packed <= read(tmp_path / "out").keys(), "the layout of the model before is kept"


def expert_outputs(model):
    """The fused matrices of the experts whose output the gates weigh."""
    return [tensor for name, tensor in model.state_dict().items()
            if tensor.ndim == 3 and re.search(r"experts\.(down_proj|fc2\.weight)$|output_linear\.weight$|experts\.mlp\.w2$", name)]


def selection_biases(model):
    return {name: tensor for name, tensor in model.state_dict().items() if re.search(r"e_score_correction_bias|expert_bias", name) and "vision" not in name}


def first_copies(parents):
    """Of each child, whether it is the first of its parent's."""
    return torch.tensor([parent not in parents[:child] for child, parent in enumerate(parents)])


def same_function_again(model, out, m):
    """The expanded model with what docs/families.md says gives the function of the source back, in transformers."""
    family = model.family
    config = family.scoped(read_config(out))
    settings = {}
    if family.wide == "scaling":  # gates are not renormalised, and m copies of each give theirs
        settings["routed_scaling_factor"] = config["routed_scaling_factor"] / m
    if family.wide == "dormant":  # the groups stay, so copies must not be chosen: K is what it was
        loaded = model.load(out)
        for name, bias in selection_biases(loaded).items():
            bias[~first_copies(parents_in(out)[layer_in(name)])] -= 2
        return loaded
    loaded = model.load(model.with_top_k(out, config[family.top_k] * m, **settings))
    if family.wide == "down":
        for matrix in expert_outputs(loaded):
            matrix /= m
    if family.wide == "selection_bias":  # it is added to probabilities, and these are those of m times as many
        for bias in selection_biases(loaded).values():
            bias /= m
    return loaded


def layer_in(name):
    return re.search(r"layers\.(\d+)\.", name).group(1)


def distance(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


# Where the recipe is K * m alone, `--top-k scale` makes that model: test_settings_that_keep_the_function_keep_it.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family.wide not in ("", "top_k")], ids=lambda family: family.name)
def test_the_documented_recipe_gives_the_function_back(models, family):
    model = models(family)
    out, _ = model.expanded("2x")
    assert distance(logits(family, same_function_again(model, out, 2)), model.source_logits()) < TOLERANCE


def says_exact(directory):
    """What coppice says beforehand of doubling the experts of a model."""
    done = coppice("expand", directory, directory.with_name("never"), "--experts", "2x", *COPIES, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["exact"]


# With K = 1 a sibling takes the whole slot of its parent.
@every_family
def test_top_1_keeps_the_function_where_gates_allow(models, family):
    if family.top_k_fixed:
        pytest.skip("the number of experts per token is a size of a tensor")
    if not family.top_1:
        pytest.skip("docs/families.md: plain copies change this family's function even at K = 1")
    model = models(family)
    out, _ = model.expanded("2x")
    source = model.with_top_k(model.source, 1)
    assert says_exact(source) == (family.top_1 == "exact")
    loaded = model.load(model.with_top_k(out, 1))
    if family.top_1 == "down":  # two copies share their parent's probability
        if family.name != "flex_olmo":  # it normalises what the experts give, which hides a factor
            assert distance(logits(family, loaded), model.source_logits(1)) > 1e-3
        for matrix in expert_outputs(loaded):
            matrix *= 2
    assert distance(logits(family, loaded), model.source_logits(1)) < TOLERANCE


# What coppice says beforehand is what transformers computes afterwards.
@every_family
def test_coppice_says_whether_the_function_is_kept(models, family):
    model = models(family)
    out, _ = model.expanded("2x")
    kept = distance(model.seen(out).logits, model.source_logits()) < TOLERANCE
    assert model.says_exact() == kept


# Settings by which coppice itself keeps the function, with the families that refuse them or cannot promise it.
KEEPING = {
    "split": ["--split", 2],
    "scale": ["--experts", "2x", "--top-k", "scale", "--router-init", "copy"],
    "dormant": ["--experts", "2x", "--expert-init", "copy_noise", "--router-init", "dormant"],
}


@pytest.mark.parametrize("setting", KEEPING)
@every_family
def test_settings_that_keep_the_function_keep_it(models, tmp_path, family, setting):
    model = models(family)
    done = coppice("expand", model.source, tmp_path / "out", *KEEPING[setting], "--json")
    if done.returncode != 0:
        assert done.returncode in (2, 3) and not (tmp_path / "out").exists(), done.stderr
        assert setting != "scale" or family.wide != "top_k", done.stderr
        pytest.skip(done.stderr.strip())
    exact = json.loads(done.stdout)["exact"]
    assert exact or setting != "scale" or family.wide != "top_k"
    if exact:
        assert distance(logits(family, model.load(tmp_path / "out")), model.source_logits()) < 2 * TOLERANCE  # sums of more terms
    if setting != "scale" or family.wide != "top_k":  # its weights are those of plain copies, which are verified above
        done = coppice("verify", model.source, tmp_path / "out")
        assert done.returncode == 0, done.stdout + done.stderr
    if not exact:
        pytest.skip("not promised")


# Layers for multi-token prediction hold experts and a router too. transformers leaves them out; other engines read them.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family.mtp], ids=lambda family: family.name)
def test_prediction_layers_grow_too(models, tmp_path, family):
    model = models(family)
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_config(source, read_config(model.source))
    before = read(model.source)
    more = mtp_tensors(family, before)
    before.update(more)
    rewrite(source, before)
    done = coppice("expand", source, out, "--experts", "2x", *COPIES)
    assert done.returncode == 0, done.stderr
    after = read(out)
    problems = differences(grown(family, before, parents_in(out), 2 * family.num_experts), after)
    assert not problems, "\n".join(problems[:20])
    done = coppice("verify", source, out)
    assert done.returncode == 0, done.stdout + done.stderr


# Scores speak of the layers that a configuration counts, which are those of the encoder where there are two stacks.
@pytest.mark.parametrize("family", [family for family in FAMILIES if not family.bidirectional], ids=lambda family: family.name)
def test_layers_may_have_parents_of_their_own(models, tmp_path, family):
    model = models(family)
    lineage = json.loads((model.expanded("2x")[0] / "coppice.json").read_text())["steps"][-1]
    seen = model.inspected()
    experts = family.num_experts
    wanted = COUNTS["uneven"](experts)
    values = torch.rand(len(lineage["parents"]), experts, generator=torch.Generator().manual_seed(3)).tolist()
    for layer, of_layer in enumerate(values):
        of_layer[layer % experts] += 2  # another expert is the best one in each layer
    part = {"sum": dict(zip(lineage["parents"], values))}
    scores = {"coppice_scores": 1, "model": {"digest": lineage["source_digest"], "model_type": seen["model_type"],
                                             "layers": seen["layers"], "experts": experts},
                    "tokens": {"digest": "", "seen": 1, "batch_tokens": 1, "batches": 1},
                    "metrics": {"gradient_squared": {"fc1": part, "fc2": part}}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    done = coppice("expand", model.source, tmp_path / "out", "--experts", wanted, *COPIES, "--scores", tmp_path / "scores.json",
                   "--select", "greedy", "--max-duplicates", 2)
    assert done.returncode == 0, done.stderr
    parents = parents_in(tmp_path / "out")
    if len(parents) > 1:
        assert len({tuple(of_layer) for of_layer in parents.values()}) > 1
    problems = differences(grown(family, read(model.source), parents, wanted), read(tmp_path / "out"))
    assert not problems, "\n".join(problems[:20])
    done = coppice("verify", model.source, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr


# Its experts are the pairs of two lists of keys: there is no row of a router to copy, and their number stays a square.
def test_product_key_experts_are_refused_with_the_reason(tmp_path):
    (tmp_path / "m").mkdir()
    config = transformers.AutoConfig.for_model("doge", is_moe=True, num_experts=4, num_experts_per_tok=2, hidden_size=32, vocab_size=VOCAB)
    config.save_pretrained(tmp_path / "m")
    rewrite(tmp_path / "m", {"model.embed_tokens.weight": torch.zeros(VOCAB, 32)})
    done = coppice("expand", tmp_path / "m", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    assert "doge" in done.stderr and "product" in done.stderr, done.stderr


# The error for a family that this build does not have tells what it could not place, and which family comes nearest.
def test_unknown_families_are_refused_with_the_nearest(models, tmp_path):
    source = models(next(family for family in FAMILIES if family.name == "qwen3_moe")).source
    (tmp_path / "m").mkdir()
    write_config(tmp_path / "m", dict(read_config(source), model_type="qwen3_moes"))
    rewrite(tmp_path / "m", dict(read(source), extra=torch.zeros(2)))
    done = coppice("expand", tmp_path / "m", tmp_path / "out")
    assert done.returncode == 3, done.stderr
    for part in ("qwen3_moes", "qwen3_moe'", "extra"):
        assert part in done.stderr, done.stderr
