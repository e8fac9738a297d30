"""`coppice score`, one layer in memory at a time, against autograd through transformers' whole model, for every family that is trained and has experts."""

import importlib.util
import json
import os
import pathlib
import subprocess

import numpy
import pytest
import torch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("COPPICE_BUILD", REPOSITORY / "build" / "release"))
COPPICE = os.environ.get("COPPICE_BIN", str(BUILD / "coppice"))
WINDOWS, LENGTH = 3, 17  # each window is a batch of its own, and all of them are one pass over the file: no order matters
TOLERANCE = 1e-4


def neighbour(name):
    spec = importlib.util.spec_from_file_location(name, pathlib.Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


decoder, token_file = neighbour("test_decoder"), neighbour("test_token_file")
CASES = [case for case in decoder.CASES if "num_experts_per_tok" in case[2]]


def squared(tensor):
    return tensor.double().square().flatten(1).sum(1)


class Expected:
    """The metrics of every MoE layer by name and part, straight from their definitions."""

    def __init__(self, model, ids):
        self.model, self.layers = model, {}
        for name, module in model.named_modules():
            if name.endswith(".experts"):
                self.layers[name.split("layers.")[1].split(".")[0]] = module
                module.register_forward_hook(self.watch)
        self.batches = []
        for w in range(WINDOWS):
            model.zero_grad()
            self.routing = {}
            window = torch.tensor(ids[w * LENGTH : (w + 1) * LENGTH + 1]).unsqueeze(0)
            decoder.token_loss(model(window[:, :-1]).logits, window[:, 1:]).backward()
            self.batches.append({layer: (module.gate_up_proj.grad.clone(), module.down_proj.grad.clone(), self.routing[module])
                                 for layer, module in self.layers.items()})

    def watch(self, module, arguments, output):
        hidden, index, gates = (a.detach() for a in arguments[:3])
        experts = module.gate_up_proj.shape[0]
        change = []
        with torch.no_grad():
            for e in range(experts):
                without = type(module).forward(module, hidden, index, torch.where(index == e, 0.0, gates))
                change.append(((output.detach() - without).double() ** 2).sum() / (output.detach().double() ** 2).sum())
        scaling = getattr(self.model.config, "routed_scaling_factor", 1.0)
        shares = gates.double() / gates.double().sum(-1, keepdim=True)
        self.routing[module] = {
            "load": torch.bincount(index.flatten(), minlength=experts) / index.numel(),
            "gate_mass": torch.stack([torch.where(index == e, gates.double(), 0.0).sum() / scaling for e in range(experts)]),
            "output_error": torch.stack(change),
            "gate_concentration": (1 / shares.square().sum(-1)).mean()}

    def metrics(self, layer, part):
        module = self.layers[layer]
        w = (module.gate_up_proj if part == "fc1" else module.down_proj).detach()
        gradients = torch.stack([batch[layer][0 if part == "fc1" else 1] for batch in self.batches])
        g, v = gradients.double().mean(0), gradients.double().square().mean(0)
        norm, size = squared(w).sqrt(), squared(g).sqrt()
        found = {"weight_norm": norm, "gradient_norm": size, "gradient_squared": size**2, "weight_grad_product": norm * size,
                 "taylor": (w.double() * g).flatten(1).sum(1).abs(), "approx_fisher": size**2 / (squared(v).sqrt() + 1e-8),
                 "batch_fisher": sum(squared(one) for one in gradients)}
        return found | {name: sum(batch[layer][2][name] for batch in self.batches) for name in ("load", "gate_mass", "output_error")}


@pytest.mark.parametrize("name, model_type, settings", CASES, ids=[case[0] for case in CASES])
def test_every_metric_is_that_of_autograd_through_the_whole_model(tmp_path, name, model_type, settings):
    model = decoder.make_model(model_type, settings)
    model.save_pretrained(tmp_path / "m", max_shard_size="60KB")
    ids = numpy.random.default_rng(3).integers(0, decoder.COMMON["vocab_size"], WINDOWS * LENGTH + 1)
    token_file.write_megatron(tmp_path / "t", [ids], 8)
    done = subprocess.run([COPPICE, "score", tmp_path / "m", tmp_path / "t", "--out", tmp_path / "scores.json", "--batches", str(WINDOWS),
                           "--batch-tokens", str(LENGTH), "--sequence-length", str(LENGTH), "--max-memory", "1KB", "--threads", "1"],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    expected = Expected(model, ids.tolist())
    assert set(scores["routing"]["gate_concentration"]["sum"]) == set(expected.layers)
    for layer in expected.layers:
        wanted = sum(batch[layer][2]["gate_concentration"] for batch in expected.batches).item()
        assert scores["routing"]["gate_concentration"]["sum"][layer] == pytest.approx(wanted, rel=TOLERANCE)
        for part in ("fc1", "fc2"):
            metrics = expected.metrics(layer, part)
            assert set(metrics) == set(scores["metrics"])
            for metric, values in metrics.items():
                found = torch.tensor(scores["metrics"][metric][part]["sum"][layer])
                # taylor is a sum of either sign: what it loses by cancellation is a share of |w| |g|.
                scale = metrics["weight_grad_product"] if metric == "taylor" else values
                error = ((found - values).abs() - TOLERANCE * scale.abs() - 1e-12).max().item()
                assert error <= 0, f"layer {layer}, {part}, {metric}: {found} for {values}"
