"""Times the collectives of these ranks over Gloo and prints the points that `coppice plan --cluster FILE` and bench/ranks.py take: ranks, bytes that each rank sends, seconds.

usage: torchrun --nproc-per-node 2 bench/collectives.py > POINTS

The median over repetitions of a reduce-scatter, an all-gather and an all-to-all of f32 values, each at sizes from 4 KB to 64 MB a rank.
"""

import os
import statistics
import time

import torch
import torch.distributed as dist

SIZES = [2**n for n in range(12, 27, 2)]  # bytes of one rank's part


def timed(call, repetitions):
    seconds = []
    for _ in range(repetitions):
        dist.barrier()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    slowest = torch.tensor([statistics.median(seconds)], dtype=torch.float64)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return slowest.item()


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    if size < 2:
        raise SystemExit("collectives.py: one process has nobody to send to (start it by torchrun --nproc-per-node 2)")
    for part in SIZES:
        one, all_parts = torch.ones(part // 4), torch.ones(size * part // 4)
        out = torch.empty_like(all_parts)
        for call in (lambda: dist.reduce_scatter_tensor(one, all_parts), lambda: dist.all_gather_into_tensor(out, one), lambda: dist.all_to_all_single(out, all_parts)):
            call()
            seconds = timed(call, 7 if part > 2**22 else 21)
            if rank == 0:
                print(size, (size - 1) * part, f"{seconds:.6g}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
