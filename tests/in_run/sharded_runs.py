"""What the ranks of a sharded model do: one thing behind the other, with what failed; and comparisons with a whole model."""

import contextlib
import datetime
import importlib
import json
import traceback

import torch
import torch.distributed as dist

import coppice


def do_all(rank, script, ranks, folder):
    """Everything that a script does, on one rank: what it does by name, with "" or why it failed. Nothing is done behind a failure, where
    the ranks may no longer be at the same place.
    """
    torch.set_num_threads(1)
    things, stand_ins = importlib.import_module(script).things()
    store = dist.FileStore(str(folder / "store"), ranks)
    dist.init_process_group("gloo", rank=rank, world_size=ranks, store=store, timeout=datetime.timedelta(seconds=60))
    said = {}
    with contextlib.ExitStack() as stack:
        for stand_in in stand_ins:
            stack.enter_context(stand_in)
        for name, thing in things.items():
            try:
                thing()
                said[name] = ""
            except Exception:
                said[name] = traceback.format_exc()
                return said
    dist.destroy_process_group()
    return said


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
