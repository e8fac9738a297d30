"""Our safetensors files against the safetensors library: each reads what the other wrote, bit for bit."""

import os
import pathlib
import subprocess

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64,
          torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64,
          torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu]


def of_bytes(dtype, *shape):
    """A tensor of arbitrary bits (of 0 and 1 for bool)."""
    size = torch.empty(0, dtype=dtype).element_size()
    count = torch.Size(shape).numel() * size
    high = 2 if dtype == torch.bool else 256
    return torch.randint(0, high, (count,), dtype=torch.uint8).view(dtype).reshape(shape)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> (tensors, metadata), written by the library and rewritten by ours."""
    program = next((p for p in (BUILD / "tests" / "io_test", BUILD / "io_test") if p.exists()), None)
    if program is None:
        pytest.skip(f"no io_test in {BUILD}; build it first (make test does)")
    torch.manual_seed(0)
    cases = {
        "dtypes": ({f"t.{i}": of_bytes(d, 3, 5) for i, d in enumerate(DTYPES)}, {"format": "pt"}),
        "shapes": ({"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "deep": of_bytes(torch.bfloat16, 2, 1, 3, 1, 2)},
                   {"format": "pt", "note": "two\nlines, \"quotes\" and ümläuts"}),
        "names": ({'a "quoted" \\ name': torch.ones(1), "größe/重み": torch.ones(2), "": torch.ones(3)}, {"format": "pt"}),
        "odd": ({"u8": of_bytes(torch.uint8, 7), "f32": of_bytes(torch.float32, 3)}, None),
    }
    source, rewritten = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("rewritten")
    for name, (tensors, metadata) in cases.items():
        save_file(tensors, source / f"{name}.safetensors", metadata=metadata)
    environment = dict(os.environ, COPPICE_TEST_IN=str(source), COPPICE_TEST_OUT=str(rewritten))
    done = subprocess.run([program, "--gtest_filter=SafetensorsParity.*"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "SKIPPED" not in done.stdout, done.stdout + done.stderr
    return cases, source, rewritten


@pytest.mark.parametrize("name", ["dtypes", "shapes", "names", "odd"])
def test_the_library_reads_back_what_it_gave_us(files, name):
    cases, _, rewritten = files
    tensors, metadata = cases[name]
    found = load_file(rewritten / f"{name}.safetensors")
    assert found.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert same_bits(found[key], tensor), key
    with safe_open(rewritten / f"{name}.safetensors", framework="pt") as f:
        assert f.metadata() == metadata


@pytest.mark.parametrize("name", ["dtypes", "shapes", "names", "odd"])
def test_our_files_hold_their_data_in_the_same_place(files, name):
    _, source, rewritten = files
    theirs, ours = ((folder / f"{name}.safetensors").read_bytes() for folder in (source, rewritten))
    lengths = [int.from_bytes(blob[:8], "little") for blob in (theirs, ours)]
    assert lengths[1] % 8 == 0
    assert theirs[8 + lengths[0]:] == ours[8 + lengths[1]:]
