"""Functions on several ranks: processes forked from one that has imported the frameworks once."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["torch", "transformers", "megatron.core", "megatron.core.optimizer", "torchtitan.models.qwen3", "coppice", "coppice.megatron"])


def run_ranks(function, *arguments, ranks=2, timeout=200):
    """Calls function(rank, *arguments) on each rank, in a process of its own; returns what they return, raises what one raises.

    The function is found by its name, so it stands in a module that can be imported.
    """
    with ProcessPoolExecutor(ranks, mp_context=_forks, max_tasks_per_child=1) as processes:
        running = [processes.submit(function, rank, *arguments) for rank in range(ranks)]
        return [one.result(timeout) for one in running]
