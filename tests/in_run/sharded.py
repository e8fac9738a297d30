"""Ranks of a sharded model: they meet, run what is named, and leave what failed in a file; helpers that compare with a whole model."""

import datetime
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
import traceback

import torch
import torch.distributed as dist

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import coppice  # noqa: E402


def start(script, ranks, folder):
    """Runs the script on so many ranks; returns what each thing that it does said on each rank: nothing, or why it failed."""
    command = [sys.executable, "-W", "ignore", str(pathlib.Path(__file__).parent / script), str(ranks), str(folder)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"result-{rank}").read_text()) for rank in range(ranks)]


def in_ranks(things):
    """The main function of such a script: this process, which has imported everything, becomes all ranks."""
    ranks, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])
    torch.set_num_threads(1)
    running = [multiprocessing.get_context("fork").Process(target=_one_rank, args=(things, rank, ranks, folder)) for rank in range(ranks)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in running))


def _one_rank(things, rank, ranks, folder):
    dist.init_process_group("gloo", rank=rank, world_size=ranks, store=dist.FileStore(str(folder / "store"), ranks),
                            timeout=datetime.timedelta(seconds=60))
    said = {}
    for name, thing in things.items():
        begin = time.perf_counter()
        try:
            thing()
            said[name] = ""
            if os.environ.get("COPPICE_TIMES"):
                print(rank, name, time.perf_counter() - begin, flush=True)
        except Exception:
            said[name] = traceback.format_exc()
            break  # the ranks may no longer be at the same place
    (folder / f"result-{rank}").write_text(json.dumps(said))
    os._exit(0)  # other ranks may wait for this one


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def whole_tensors(model, optimizer):
    """Parameters, buffers and optimizer states by name, as copies on every rank."""
    out = {name: whole(t).detach().clone() for name, t in [*model.named_parameters(), *model.named_buffers()]}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{name}.{key}"] = whole(value).detach().clone()
    return out


def check_same(found, wanted):
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def twin_of(model, optimizer, twin, make_optimizer):
    """The same model and optimizer state without shards, on every rank."""
    tensors = whole_tensors(model, optimizer)
    its_optimizer = make_optimizer(twin)
    for name, tensor in [*twin.named_parameters(), *twin.named_buffers()]:
        tensor.data.copy_(tensors[name])
    for name, parameter in twin.named_parameters():
        its_optimizer.state[parameter] = {k.removeprefix(f"{name}."): v for k, v in tensors.items()
                                          if k.startswith(f"{name}.") and k.removeprefix(f"{name}.") in ("step", "exp_avg", "exp_avg_sq")}
    return twin, its_optimizer


def raised(kind, function, *arguments, **more):
    """The message of the error that a call raises."""
    try:
        function(*arguments, **more)
    except kind as error:
        return str(error)
    raise AssertionError(f"{function} did not raise {kind}")


def gathered_scores(model, optimizer, twin, its_optimizer, steps, its_steps):
    """Scores of a sharded model against those of a whole one that sees the batches of all ranks."""
    found, wanted = [], []
    alone = [dist.new_group([rank]) for rank in range(dist.get_world_size())][dist.get_rank()]
    for out, of, states, batches, group in ((found, model, optimizer, steps, None), (wanted, twin, its_optimizer, its_steps, alone)):
        with coppice.watch(of, optimizer=states, passes=None, group=group) as scores:
            for backward in batches:
                backward(of)
                scores.end_batch()
                of.zero_grad()
        out.append(json.loads(scores.to_json()))
    assert found[0]["second_moment"] == "trainer" and found[0]["metrics"].keys() == wanted[0]["metrics"].keys()
    for metric, linears in wanted[0]["metrics"].items():
        for linear, sums in linears.items():
            for kind, layers in sums.items():
                for layer, values in layers.items():
                    mine = torch.tensor(found[0]["metrics"][metric][linear][kind][layer])
                    assert torch.allclose(mine, torch.tensor(values), rtol=2e-3), (metric, linear, kind, layer, mine, values)
    everywhere = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, found[0])
    assert all(each == everywhere[0] for each in everywhere)
