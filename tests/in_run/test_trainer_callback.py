"""GrowthCallback in a run of transformers' own Trainer."""

import pathlib
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from runs import TOKENS, assert_same_tensors, model_of, saved  # noqa: E402

import coppice  # noqa: E402
from coppice.transformers import GrowthCallback  # noqa: E402


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        row = (TOKENS[0] * (index + 1)) % 64
        return {"input_ids": row, "labels": row}


def trainer(directory, callback, **more):
    settings = dict(output_dir=str(directory), max_steps=12, per_device_train_batch_size=2, report_to=[], logging_steps=1, save_steps=100,
                    learning_rate=1e-3, disable_tqdm=True, use_cpu=True, optim="adamw_torch", seed=1) | more
    return Trainer(model=model_of("mixtral"), args=TrainingArguments(**settings), train_dataset=Rows(), callbacks=[callback])


def losses(run):
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_grows_behind_the_step_and_trains_on(tmp_path):
    callback = GrowthCallback(at_step=5, experts="2x", score_steps=2, select="greedy")
    run = trainer(tmp_path, callback, gradient_accumulation_steps=2)
    run.train()
    assert callback.growth.experts == (4, 8) and run.model.config.num_local_experts == 8 and len(losses(run)) == 12
    assert callback.used_plan.select == "greedy"
    down = run.model.model.layers[0].mlp.experts.down_proj
    state = next(state for p, state in run.optimizer.state.items() if p is down)
    assert down.shape[0] == 8 and state["exp_avg"].shape == down.shape and float(state["step"]) == 12
    run.save_model(str(tmp_path / "last"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "last")
    assert_same_tensors(saved(again, tmp_path / "again")[0], saved(run.model, tmp_path / "direct")[0])


def test_the_run_before_the_growth_is_the_same_run(tmp_path):
    grown, plain = trainer(tmp_path / "a", GrowthCallback(at_step=6, score_steps=3)), trainer(tmp_path / "b", GrowthCallback(at_step=12))
    grown.train()
    plain.train()
    assert losses(grown)[:6] == losses(plain)[:6] and losses(grown)[7:] != losses(plain)[7:]


def test_takes_a_plan(tmp_path):
    plan = coppice.plan(model_of("mixtral"), 6)
    callback = GrowthCallback(at_step=1, plan=plan)
    run = trainer(tmp_path, callback, max_steps=2)
    run.train()
    assert callback.used_plan is plan and run.model.config.num_local_experts == 6


def test_says_what_is_wrong(tmp_path):
    with pytest.raises(coppice.UsageError, match="at_step: 0"):
        GrowthCallback(at_step=0)
    with pytest.raises(coppice.UsageError, match="score_steps: 3; wanted 0 to at_step, 2"):
        GrowthCallback(at_step=2, score_steps=3)
    with pytest.raises(coppice.UsageError, match="select: it has no effect here"):
        GrowthCallback(at_step=2, plan=coppice.plan(model_of("mixtral"), 6), select="uniform")
    with pytest.raises(coppice.UsageError, match="at_step: 13; the run has 12 steps"):
        trainer(tmp_path, GrowthCallback(at_step=13)).train()
