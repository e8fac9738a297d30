"""What people write today: expand the experts of a per-expert checkpoint 2x with a plain safetensors script.

usage: expand_script.py MODEL OUT
"""

import json
import pathlib
import re
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

EXPERT = re.compile(r"^(.*\.experts\.)(\d+)(\..*)$")


def main(source: pathlib.Path, target: pathlib.Path) -> None:
    config = json.loads((source / "config.json").read_text())
    key = next(k for k in ("num_local_experts", "num_experts", "n_routed_experts") if k in config)
    experts = config[key]
    tensors = {}
    for shard in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(shard))
    grown = {}
    for name, tensor in tensors.items():
        grown[name] = tensor
        if match := EXPERT.match(name):
            grown[f"{match[1]}{int(match[2]) + experts}{match[3]}"] = tensor.clone()
        elif name.endswith(("mlp.gate.weight", "block_sparse_moe.gate.weight", "e_score_correction_bias")):
            grown[name] = torch.cat([tensor, tensor])
    target.mkdir()
    save_file(grown, target / "model.safetensors", metadata={"format": "pt"})
    for name in ("num_local_experts", "num_experts", "n_routed_experts"):
        if name in config:
            config[name] = 2 * experts
    (target / "config.json").write_text(json.dumps(config, indent=2))
    for path in source.iterdir():
        if path.suffix != ".safetensors" and not (target / path.name).exists() and path.is_file():
            shutil.copy(path, target)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
