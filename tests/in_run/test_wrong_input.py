"""Wrong input of every kind: a clear error of coppice's own, and nothing changed or half-written."""

import dataclasses
import errno
import os
import pathlib
import sys

import pytest
import torch
import torch.distributed.checkpoint as torch_dcp

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from runs import TOKENS, assert_unchanged, everything, model_of, step  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments  # noqa: E402

import coppice  # noqa: E402
import coppice.dcp  # noqa: E402
from coppice.lineage import lineage_unique  # noqa: E402
from coppice.transformers import GrowthCallback  # noqa: E402


@pytest.fixture(scope="module")
def model():
    return model_of("mixtral")


@pytest.fixture(scope="module")
def plan(model):
    return coppice.plan(model, "2x")


@pytest.mark.parametrize("value", [None, 3, object(), torch.nn.Module], ids=str)
def test_what_is_no_model_is_refused_everywhere(value, plan):
    for function in (coppice.plan, coppice.watch, lambda m: coppice.expand_(m, plan), lambda m: lineage_unique(m, plan)):
        with pytest.raises(coppice.UsageError, match=r"model: .*; wanted a (torch )?module"):
            function(value)


FIELDS = [("parents", None), ("parents", [1, 2]), ("parents", {0: None}), ("parents", {0: [object()] * 8}), ("experts", None), ("experts", (4,)),
          ("seed", None), ("seed", -1), ("seed", 2**70), ("layer_methods", 5), ("expert_init", None), ("balance_bias", 7), ("split", 0), ("top_k_factor", "x")]


@pytest.mark.parametrize(("field", "value"), FIELDS, ids=str)
def test_an_edited_plan_is_checked(field, value, model, plan):
    before = everything(model)
    with pytest.raises((coppice.UsageError, coppice.FormatError), match="plan"):
        coppice.expand_(model, dataclasses.replace(plan, **{field: value}))
    assert_unchanged(before, everything(model))


def test_a_plan_may_hold_arrays(plan):
    arrays = {layer: torch.tensor(parents) for layer, parents in plan.parents.items()}
    assert dataclasses.replace(plan, parents=arrays).to_json() == plan.to_json()


def test_a_plan_is_written_whole_or_not_at_all(plan, tmp_path, monkeypatch):
    for path, kind in ((None, coppice.UsageError), ("/", coppice.UsageError), (tmp_path / "none/plan.toml", coppice.IoError)):
        with pytest.raises(kind):
            plan.save(path)

    def full(self, text):
        self.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    with pytest.raises(coppice.IoError, match="No space left"):
        plan.save(tmp_path / "plan.toml")
    assert not list(tmp_path.iterdir())
    for value in (None, 3):
        with pytest.raises(coppice.UsageError, match="wanted"):
            coppice.GrowthPlan.load(value)
        with pytest.raises(coppice.UsageError, match="wanted"):
            coppice.GrowthPlan.from_json(value)


def test_a_module_around_a_model_names_the_model(plan):
    with pytest.raises(coppice.UnsupportedError, match="the one inside it, 'module', is a model of transformers: MixtralForCausalLM"):
        coppice.expand_(torch.nn.DataParallel(model_of("mixtral")), plan)


def test_a_dense_model_has_no_experts():
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
    dense = LlamaForCausalLM(LlamaConfig(**sizes))
    for ask in (lambda: coppice.plan(dense.config, "2x"), lambda: coppice.plan(dense, "2x"), lambda: coppice.watch(dense)):
        with pytest.raises(coppice.UnsupportedError, match="a llama model has no experts to copy .convert it first"):
            ask()


def test_what_is_expanded_under_inference_mode_trains_on(plan):
    model = model_of("mixtral")
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    with torch.inference_mode():
        coppice.expand_(model, plan, optimizer=optimizer)
    step(model, optimizer)


@pytest.mark.parametrize("passes", [0, -1, 1.5, "x", True])
def test_watch_wants_a_whole_number(passes, model):
    with pytest.raises(coppice.UsageError, match="passes: .*wanted a number from 1 on"):
        coppice.watch(model, passes=passes)


@pytest.mark.parametrize(("words", "text"), [
    (dict(at_step="x"), "at_step: 'x'"), (dict(at_step=1.5), "at_step: 1.5"), (dict(at_step=2, score_steps="a"), "score_steps: 'a'"),
    (dict(at_step=2, expert="2x"), "expert: no option"), (dict(at_step=2, plan="x"), "plan: a str")])
def test_a_callback_is_checked_when_it_is_made(words, text):
    with pytest.raises(coppice.UsageError, match=text):
        GrowthCallback(**words)


def steps_before_refusal(tmp_path, callback, **settings):
    rows = [{"input_ids": row, "labels": row} for row in TOKENS]
    arguments = TrainingArguments(str(tmp_path), max_steps=9, save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True, **settings)
    trainer = Trainer(model_of("mixtral"), arguments, train_dataset=rows, callbacks=[callback])
    with pytest.raises(coppice.Error):
        trainer.train()
    return trainer.state.global_step


def test_a_run_that_cannot_grow_stops_at_its_start(tmp_path):
    assert steps_before_refusal(tmp_path, GrowthCallback(at_step=8, experts="0x")) == 0
    assert steps_before_refusal(tmp_path, GrowthCallback(at_step=8, score_steps=2, expert_init="copi")) == 0
    assert steps_before_refusal(tmp_path, GrowthCallback(at_step=8), optim="adafactor") == 1


@pytest.fixture
def checkpoint(tmp_path):
    def save(name="src", without=()):
        state = {"tokens.weight": torch.zeros(10, 8)}
        for layer in range(2):
            moe = f"layers.{layer}.moe."
            shapes = {"experts.w1": (4, 6, 8), "experts.w3": (4, 6, 8), "experts.w2": (4, 8, 6), "router.gate.weight": (4, 8)}
            state |= {moe + key: torch.randn(shape) for key, shape in shapes.items() if moe + key not in without}
        torch_dcp.save(state, checkpoint_id=tmp_path / name, no_dist=True)
        return tmp_path / name

    return save


def test_a_checkpoint_without_a_tensor_that_other_layers_have_is_refused(checkpoint):
    source = checkpoint(without=("layers.1.moe.experts.w2",))
    with pytest.raises(coppice.FormatError, match="missing that other layers have: layer 1: expert_down"):
        coppice.dcp.plan_checkpoint(source, "2x")


def test_arguments_of_checkpoints_are_checked(checkpoint, tmp_path):
    source = checkpoint()
    plan = coppice.dcp.plan_checkpoint(source, "2x")
    for arguments in ((None, tmp_path / "x", plan), (source, None, plan), (source, tmp_path / "x", None), (source, source / "x", plan)):
        with pytest.raises(coppice.UsageError):
            coppice.dcp.expand_checkpoint(*arguments)
    with pytest.raises(coppice.UsageError, match="num_groups: 0"):
        coppice.dcp.plan_checkpoint(source, "2x", num_groups=0)


@pytest.mark.parametrize(("error", "status", "text"), [
    (OSError(errno.ENOSPC, "No space left on device"), 4, "cannot be written: .*No space left"), (KeyboardInterrupt(), 130, "stopped; nothing of"),
    (coppice.NonFiniteError("layer 0: nan"), 3, "'layers.0.moe.experts.w1': layer 0: nan")], ids=["full", "ctrl-c", "nan"])
def test_what_stops_the_writer_is_told_and_nothing_is_left(error, status, text, checkpoint, tmp_path, monkeypatch, capsys):
    import re

    def stop(self, key, *more):
        raise error

    source = checkpoint()
    monkeypatch.setattr("coppice.dcp._Writer._layer", stop)
    assert coppice.dcp.main([str(source), str(tmp_path / "out")]) == status
    assert re.search(text, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]
