"""expand_into with fully_shard, expert parallel and DDP, over Gloo. What runs on the ranks is in sharded_transformers.py and sharded_titan.py."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from ranks import run_ranks  # noqa: E402
from sharded_runs import do_all  # noqa: E402

TRANSFORMERS = ["mixtral", "qwen3_moe", "gpt_oss", "nllb_moe", "plain", "watch", "failure", "wrong", "in-place", "ddp-again", "ddp-into"]
TITAN = ["fsdp-to-ep", "ep-to-fsdp", "ep-to-ep", "watch-fsdp", "watch-ep", "refuses"]


@pytest.fixture(scope="module")
def transformers_said(tmp_path_factory):
    return run_ranks(do_all, "sharded_transformers", 2, tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="module")
def titan_said(tmp_path_factory):
    pytest.importorskip("torchtitan")
    return run_ranks(do_all, "sharded_titan", 4, tmp_path_factory.mktemp("titan"), ranks=4)


def check(said, name):
    for rank, by_name in enumerate(said):
        assert name in by_name, f"rank {rank} did not come to it"
        assert by_name[name] == "", f"rank {rank}: {by_name[name]}"


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_two_ranks_with_transformers(name, transformers_said):
    assert list(transformers_said[0]) == TRANSFORMERS[: len(transformers_said[0])]
    check(transformers_said, name)


@pytest.mark.parametrize("name", TITAN)
def test_four_ranks_with_torchtitan(name, titan_said):
    check(titan_said, name)
