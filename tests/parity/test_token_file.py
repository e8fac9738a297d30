"""Token files against an independent reader and writer of Megatron's MMapIndexedDataset layout."""

import json
import os
import pathlib
import struct
import subprocess

import numpy
import pytest
from transformers import AutoTokenizer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = os.environ.get("COPPICE_BIN", str(BUILD / "coppice"))
DATA_TEST = BUILD / "tests" / "data_test"

DTYPES = {1: numpy.uint8, 2: numpy.int8, 3: numpy.int16, 4: numpy.int32, 5: numpy.int64, 8: numpy.uint16}


def read_megatron(prefix):
    """Documents as numpy arrays, read as Megatron-LM's indexed_dataset.py documents the files."""
    with open(f"{prefix}.idx", "rb") as stream:
        assert stream.read(9) == b"MMIDIDX\x00\x00"
        version, = struct.unpack("<Q", stream.read(8))
        code, = struct.unpack("<B", stream.read(1))
        sequence_count, document_count = struct.unpack("<QQ", stream.read(16))
        offset = stream.tell()
    assert version == 1
    dtype = numpy.dtype(DTYPES[code])
    buffer = memoryview(numpy.memmap(f"{prefix}.idx", mode="r", order="C"))
    lengths = numpy.frombuffer(buffer, numpy.int32, sequence_count, offset)
    pointers = numpy.frombuffer(buffer, numpy.int64, sequence_count, offset + lengths.nbytes)
    documents = numpy.frombuffer(buffer, numpy.int64, document_count, offset + lengths.nbytes + pointers.nbytes)
    assert offset + lengths.nbytes + pointers.nbytes + documents.nbytes == len(buffer)
    data = memoryview(numpy.memmap(f"{prefix}.bin", mode="r", order="C"))
    sequences = [numpy.frombuffer(data, dtype, length, pointer) for length, pointer in zip(lengths, pointers)]
    assert sum(s.nbytes for s in sequences) == len(data)
    return [numpy.concatenate(sequences[a:b]) if b > a else numpy.empty(0, dtype) for a, b in zip(documents[:-1], documents[1:])], dtype


def write_megatron(prefix, documents, code):
    """One sequence a document, as Megatron's preprocess_data.py writes them."""
    dtype = numpy.dtype(DTYPES[code])
    arrays = [numpy.asarray(d, dtype) for d in documents]
    lengths = [len(a) for a in arrays]
    pointers = numpy.cumsum([0] + [n * dtype.itemsize for n in lengths[:-1]]) if arrays else []
    with open(f"{prefix}.bin", "wb") as stream:
        for a in arrays:
            stream.write(a.tobytes(order="C"))
    with open(f"{prefix}.idx", "wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(arrays), len(arrays) + 1))
        stream.write(numpy.asarray(lengths, numpy.int32).tobytes())
        stream.write(numpy.asarray(pointers, numpy.int64).tobytes())
        stream.write(numpy.arange(len(arrays) + 1, dtype=numpy.int64).tobytes())


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    directory = tmp_path_factory.mktemp("text")
    documents = [p.read_text() for p in sorted(pathlib.Path(os.__file__).parent.glob("[a-d]*.py"))]
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    done = subprocess.run([COPPICE, "tokenize", directory / "text.jsonl", "--out", directory / "set", "--train-tokenizer", directory / "tok",
                           "--vocab-size", "700"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return directory, [d for d in documents if d]


def test_an_independent_reader_finds_the_documents(text):
    directory, documents = text
    stored, dtype = read_megatron(directory / "set")
    auto = AutoTokenizer.from_pretrained(directory / "tok")
    assert dtype == numpy.uint16
    assert [d.tolist() for d in stored] == [auto(d).input_ids + [auto.eos_token_id] for d in documents]
    card = json.loads((directory / "set.json").read_text())
    assert card["documents"] == len(stored)
    assert card["tokens"] == sum(map(len, stored))
    assert card["text_bytes"] == sum(len(d.encode()) for d in documents)
    assert card["vocab_size"] == 700


@pytest.mark.parametrize("code", DTYPES)
def test_reads_what_an_independent_writer_wrote(tmp_path, code):
    generator = numpy.random.default_rng(code)
    top = min(int(numpy.iinfo(DTYPES[code]).max), 2**40)
    documents = [generator.integers(0, top, size=n, dtype=numpy.int64) for n in (5, 0, 1, 3000)]
    write_megatron(tmp_path / "set", documents, code)
    done = subprocess.run([DATA_TEST, "--gtest_filter=TokenFileParity.*"], capture_output=True, text=True,
                          env=os.environ | {"COPPICE_TEST_IN": str(tmp_path / "set"), "COPPICE_TEST_OUT": str(tmp_path / "out.txt")})
    assert done.returncode == 0, done.stdout
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert [list(map(int, line.split())) for line in lines] == [d.tolist() for d in documents]
