"""`coppice eval` against lm-evaluation-harness (multiple choice) and transformers (losses, agreement of two models)."""

import json
import os
import pathlib
import random
import subprocess

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = os.environ.get("COPPICE_BIN", str(BUILD / "coppice"))
GENERATE = BUILD / "tests" / "families_generate"
SIZES = ["vocab_size=400", "model_dim=32", "num_heads=2", "num_layers=3", "num_experts=4", "top_k=2", "expert_width=16", "max_positions=96"]


def told_by(*arguments):
    done = subprocess.run([COPPICE, *map(str, arguments), "--json", "--threads", "1"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(*arguments):
    done = subprocess.run([COPPICE, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.stdout == ""
    return done.returncode, done.stderr


def generate(directory, family="olmoe", dtype="F32", *sizes):
    subprocess.run([GENERATE, directory, family, dtype, *SIZES, *sizes], check=True, timeout=300)
    return directory


def add_tokenizer(directory, leading):
    """A byte-level BPE tokenizer; with `leading`, one that puts <s> before every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([pathlib.Path(__file__).read_text()], trainer)
    if leading:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(directory)


@pytest.fixture(scope="module", params=["plain", "leading"])
def model(request, tmp_path_factory):
    directory = generate(tmp_path_factory.mktemp("eval") / "m")
    add_tokenizer(directory, request.param == "leading")
    return directory


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Questions of every awkward kind: trailing spaces, choices of other lengths and alphabets, contexts past the model's positions, a special token."""
    draw = random.Random(11)
    words = [w for w in pathlib.Path(__file__).read_text().split() if len(w) < 9] + ["Größe", "naïve", "日本語", "😀 ok", "..."]
    text = lambda least, most: " ".join(draw.choice(words) for _ in range(draw.randint(least, most)))
    questions = []
    for i in range(120):
        context = text(1, 8) if i % 10 else text(30, 60)
        context += draw.choice(["", "", "", " ", "  ", "\u00a0", ":"])
        if i % 17 == 0:
            context = "<s>" + context
        choices = [text(1, 5) for _ in range(draw.randint(2, 5))]
        questions.append({"context": context, "choices": choices, "answer": draw.randrange(len(choices)), "id": i})
    path = tmp_path_factory.mktemp("tasks") / "awkward.jsonl"
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))
    return path, questions


def harness(directory, path):
    """What lm-evaluation-harness says of the same model and the same file."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.api.task import ConfigurableTask

    class Task(ConfigurableTask):
        def __init__(self):
            super().__init__(config={
                "task": path.stem, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(path.parent / "cache")},
                "test_split": "test", "output_type": "multiple_choice", "doc_to_text": lambda doc: doc["context"], "doc_to_choice": lambda doc: doc["choices"],
                "doc_to_target": lambda doc: doc["answer"], "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]})

    lm = HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=8)
    out = lm_eval.evaluate(lm=lm, task_dict={path.stem: Task()}, log_samples=True, bootstrap_iters=0)
    samples = sorted(out["samples"][path.stem], key=lambda s: s["doc_id"])
    return out["results"][path.stem], [[r[0] for r in s["filtered_resps"]] for s in samples]


def test_multiple_choice_is_that_of_the_harness(model, tasks):
    path, questions = tasks
    results, likelihoods = harness(model, path)
    for memory in ("1GB", "1KB"):
        found, = told_by("eval", model, "--tasks", path, "--max-memory", memory)["tasks"]
        assert found["name"] == "awkward" and found["questions"] == len(questions)
        for mine, theirs in zip(found["log_likelihoods"], likelihoods, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)
        assert found["accuracy"] == pytest.approx(results["acc,none"], abs=1e-12)
        assert found["normalised_accuracy"] == pytest.approx(results["acc_norm,none"], abs=1e-12)
        assert found["accuracy"] != found["normalised_accuracy"], "the questions do not tell the two apart"


@pytest.mark.parametrize("line, words", [
    ('{"context": "a", "choices": ["b", "c"]}', "'answer' is missing"), ('{"context": "a", "choices": ["b", "c"], "answer": 2}', "answer 2 of 2"),
    ('{"context": "a", "choices": ["b", "c"], "answer": -1}', "answer -1"), ('{"context": "a", "choices": ["b"], "answer": 0}', "fewer than two"),
    ('{"context": "a", "choices": ["b", ""], "answer": 0}', "choice that is not text"), ('{"context": " ", "choices": ["b", "c"], "answer": 0}', "the context is empty"),
    ('{"context": 1, "choices": ["b", "c"], "answer": 0}', "'context' is missing"), ('{"context": "a", "choices": "b", "answer": 0}', "'choices' is missing"),
    ('{"context": "a"', "line 2"), ("[]", "'context' is missing")])
def test_questions_that_are_none_are_refused_with_their_line(model, tmp_path, line, words):
    path = tmp_path / "t.jsonl"
    path.write_text('{"context": "a", "choices": ["b", "c"], "answer": 1}\n' + line + "\n")
    status, message = refused("eval", model, "--tasks", path)
    assert status == 3 and words in message and "line 2" in message, message


def test_loss_bits_per_byte_and_agreement_are_those_of_transformers(model, tmp_path):
    other = generate(tmp_path / "other", "mixtral")
    add_tokenizer(other, False)
    text = tmp_path / "t.txt"
    text.write_text(pathlib.Path(__file__).read_text()[:3000] + "Größe")
    told = subprocess.run([COPPICE, "tokenize", text, "--tokenizer", model, "--out", tmp_path / "t"], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = torch.tensor(tokenizer.encode(text.read_text(), add_special_tokens=False) + [tokenizer.eos_token_id])
    if tokenizer.encode("a") != tokenizer.encode("a", add_special_tokens=False):
        pytest.skip("one tokenizer is enough here")

    with torch.no_grad():
        logits = []
        for directory in (model, other):
            reference = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            logits.append(torch.cat([reference(w.unsqueeze(0)).logits[0] for w in ids[:-1].split(32)]).double().log_softmax(-1))
    mine, theirs = logits
    loss = -mine.gather(1, ids[1:].unsqueeze(1)).mean().item()
    kl = (theirs.exp() * (theirs - mine)).sum(-1).mean().item()
    for memory in ("1GB", "1KB"):
        found, = told_by("eval", model, "--tokens", tmp_path / "t", "--sequence-length", 32, "--against", other, "--max-memory", memory)["files"]
        assert found["tokens"] == len(ids) - 1
        assert found["loss"] == pytest.approx(loss, rel=1e-5)
        assert found["bits_per_byte"] == pytest.approx(loss / 0.6931471805599453 * len(ids) / len(text.read_bytes()), rel=1e-5)
        assert found["kl"] == pytest.approx(kl, rel=1e-3)
        assert found["top_1_agreement"] == pytest.approx((mine.argmax(-1) == theirs.argmax(-1)).double().mean().item(), abs=1e-9)
    same, = told_by("eval", model, "--tokens", tmp_path / "t", "--sequence-length", 32, "--against", model)["files"]
    assert same["kl"] == 0 and same["top_1_agreement"] == 1


def test_models_over_other_tokens_are_not_compared(model, tmp_path):
    other = generate(tmp_path / "other", "olmoe", "F32", "vocab_size=401")
    subprocess.run([COPPICE, "tokenize", __file__, "--tokenizer", model, "--out", tmp_path / "t"], check=True, capture_output=True)
    status, message = refused("eval", model, "--tokens", tmp_path / "t", "--sequence-length", 32, "--against", other)
    assert status == 2 and "vocabulary of 401" in message
    status, message = refused("eval", model, "--against", other)
    assert status == 2
