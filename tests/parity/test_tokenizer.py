"""The tokenizers we train: the same ids from coppice, sentencepiece, tokenizers and transformers; every text comes back whole."""

import json
import os
import pathlib
import random
import shutil
import subprocess

import numpy
import pytest
import sentencepiece
import tokenizers
from transformers import AutoTokenizer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = os.environ.get("COPPICE_BIN", str(BUILD / "coppice"))

SPECIALS = ["<unk>", "<s>", "</s>"]
HARD = [" ", "  a  b   c ", "\n\n\n", "a\tb\t\tc", "\r\n x\r\n", "h\u00e9 \U0001f600 \u6f22\u5b57\u304b\u306a \u00dcn\u00efc\u00f6d\u00e9 \u00df\u1e9e", "".join(map(chr, range(1, 32))),
        "a" * 1000, " " * 777, "ab" * 500, "\n" * 333, "\u200b\ufeff x\u0301", "\u00a0\u2003\u3000 wide", "12345 67 8", "\t" * 50 + "  " * 30 + "\n \n",
        "\U0010ffff\ufffd\u0000 end", "'quoted' \"text\" -- 3.14159e-10", "if (x) {\n\treturn y[i++];\n}\n"]
SPELLED_OUT = ["x <s> </s> y <unk> z", " <s> ", "</s></s>", "<s", "</s", "<<s>>", "a</s>b", "<unk"]
SPACE_MARK = "a\u2581b \u2581 \u2581\u2581c"


def domains():
    """Texts of several kinds: COPPICE_TEST_TEXT names a directory of .txt files; else what every machine has."""
    if directory := os.environ.get("COPPICE_TEST_TEXT"):
        return {p.stem: p.read_bytes().decode() for p in sorted(pathlib.Path(directory).glob("*.txt"))}
    library = pathlib.Path(os.__file__).parent
    generator = random.Random(0)
    syllables = ["gr\u00fcn", "stra\u00dfe", "\u00e9t\u00e9", "\u0142\u00f3d\u017a", "\u03bb\u03cc\u03b3\u03bf\u03c2", "\u6797", "\u68ee", "mo", "ki", "\U0001f332"]
    mixed = " ".join("".join(generator.choices(syllables, k=generator.randint(1, 4))) + generator.choice([""] * 6 + [",", ".\n", "\r\n"])
                     for _ in range(30000))
    headers = "".join(p.read_text(errors="ignore") for p in sorted(pathlib.Path("/usr/include").glob("*.h"))[:80])
    licences = "".join(p.read_text(errors="ignore") for p in sorted(pathlib.Path("/usr/share/common-licenses").iterdir()))
    return {"python": "".join((library / name).read_text() for name in ["argparse.py", "ast.py", "typing.py", "_pydecimal.py"]),
            "headers": headers, "licences": licences, "mixed": mixed}


def coppice_ids(texts, tokenizer, work):
    """Ids of each text through `coppice tokenize`; the eos that ends every document taken off."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    (work / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    done = subprocess.run([COPPICE, "tokenize", work / "texts.jsonl", "--out", work / "out", "--tokenizer", tokenizer, "--json"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == len(texts)
    index = (work / "out.idx").read_bytes()
    count = int.from_bytes(index[18:26], "little")
    lengths = numpy.frombuffer(index, dtype="<i4", count=count, offset=34)
    tokens = numpy.fromfile(work / "out.bin", dtype="<u2" if index[17] == 8 else "<i4")
    documents = [d.tolist() for d in numpy.split(tokens, numpy.cumsum(lengths)[:-1])]
    eos = {d[-1] for d in documents}
    assert len(eos) == 1
    return [d[:-1] for d in documents], eos.pop()


@pytest.fixture(scope="module")
def samples():
    generator = random.Random(1)
    out = [text[i:i + 3000] for text in domains().values() for i in range(0, len(text), max(1, len(text) // 20))]
    alphabet = [" ", "  ", "\n", "a", "b", "ab", "the", "\t", "(", ")", ";", "}", "\u00e9", "1", ".", "\u6f22"]
    out += ["".join(generator.choices(alphabet, k=200)) for _ in range(1500)]
    return [s for s in out if s] + HARD


@pytest.fixture(scope="module", params=[512, 2048])
def trained(request, tmp_path_factory):
    work = tmp_path_factory.mktemp("trained")
    for name, text in domains().items():
        (work / f"{name}.txt").write_bytes(text.encode())
    done = subprocess.run([COPPICE, "tokenize", *sorted(work.glob("*.txt")), "--out", work / "set", "--train-tokenizer", work / "tok",
                           "--vocab-size", str(request.param)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return work / "tok"


def test_four_implementations_give_the_same_ids(trained, samples, tmp_path):
    ours, eos = coppice_ids(samples, trained, tmp_path / "ids")
    spm = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    fast = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(trained)
    assert eos == auto.eos_token_id == spm.eos_id() == 2
    assert len(auto) == spm.vocab_size() == fast.get_vocab_size()
    for text, ids in zip(samples, ours):
        assert ids == spm.encode(text), text[:60]
        assert ids == fast.encode(text, add_special_tokens=False).ids, text[:60]
        assert ids == auto(text, add_special_tokens=False).input_ids, text[:60]
        assert ids == auto(text).input_ids, text[:60]


def test_every_text_comes_back_whole(trained, samples):
    spm = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    fast = tokenizers.Tokenizer.from_file(str(trained / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(trained)
    for text in samples:
        ids = auto(text).input_ids
        assert auto.decode(ids) == text
        assert fast.decode(ids, skip_special_tokens=False) == text
        if "\0" not in text:  # sentencepiece's own decoder stops there
            assert spm.decode(ids) == text


def test_special_tokens_and_space_marks_in_text_are_read_as_transformers_reads_them(trained, tmp_path):
    texts = SPELLED_OUT + [SPACE_MARK]
    ours, _ = coppice_ids(texts, trained, tmp_path / "ids")
    auto = AutoTokenizer.from_pretrained(trained)
    assert ours == [auto(t).input_ids for t in texts]


@pytest.mark.parametrize("model_type", ["glm4_moe", "mixtral", "qwen3_moe", "llama"])
def test_a_model_directory_of_any_family_keeps_the_ids(trained, samples, tmp_path, model_type):
    directory = tmp_path / "model"
    shutil.copytree(trained, directory)
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    auto, plain = AutoTokenizer.from_pretrained(directory), AutoTokenizer.from_pretrained(trained)
    for text in samples[::20]:
        assert auto(text).input_ids == plain(text).input_ids


def test_what_transformers_saves_again_keeps_the_ids(trained, samples, tmp_path):
    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path / "saved")
    before, _ = coppice_ids(samples[::10], trained, tmp_path / "a")
    after, _ = coppice_ids(samples[::10], tmp_path / "saved", tmp_path / "b")
    assert before == after


def test_a_sentencepiece_model_alone_gives_the_ids_of_transformers(trained, samples, tmp_path):
    directory = tmp_path / "alone"
    directory.mkdir()
    shutil.copy(trained / "tokenizer.model", directory)
    config = json.loads((trained / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "LlamaTokenizer"}))
    ours, _ = coppice_ids(samples[::5], directory, tmp_path / "ids")
    auto = AutoTokenizer.from_pretrained(directory)
    for text, ids in zip(samples[::5], ours):
        assert ids == auto(text, add_special_tokens=False).input_ids, text[:60]


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A tokenizer.json of another kind, as GPT-2 and Qwen have, with a token added after training."""
    directory = tmp_path_factory.mktemp("byte_level")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
                                             special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator([t[:100000] for t in domains().values()], trainer)
    tokenizer.add_special_tokens(["<|im_end|>"])
    tokenizer.enable_truncation(16)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}))
    return directory


def test_a_tokenizer_json_goes_through_helpers_with_the_ids_of_transformers(byte_level, samples, tmp_path):
    ours, eos = coppice_ids(samples, byte_level, tmp_path / "ids")
    auto = AutoTokenizer.from_pretrained(byte_level)
    assert eos == auto.eos_token_id
    for text, ids in zip(samples, ours):
        assert ids == auto(text, add_special_tokens=False).input_ids, text[:60]


def test_the_end_of_text_token_comes_from_the_configuration_there_is(byte_level, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(byte_level, directory)
    (directory / "tokenizer_config.json").unlink()
    (directory / "config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert coppice_ids(["text"], directory, tmp_path / "ids")[1] == 7
    (directory / "config.json").write_text("{}")
    done = subprocess.run([COPPICE, "tokenize", __file__, "--out", tmp_path / "x", "--tokenizer", directory], capture_output=True, text=True)
    assert done.returncode == 3 and "end-of-text" in done.stderr


def test_many_documents_keep_their_order_over_several_helpers(byte_level, tmp_path):
    texts = [f"document {i} " + "word " * (i % 97) for i in range(20000)]
    ours, _ = coppice_ids(texts, byte_level, tmp_path / "ids")
    fast = tokenizers.Tokenizer.from_file(str(byte_level / "tokenizer.json"))
    fast.no_truncation()
    assert ours == [e.ids for e in fast.encode_batch(texts, add_special_tokens=False)]
