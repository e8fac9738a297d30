"""What the costly expert methods are in plain PyTorch, on matrices of a checkpoint: the same mathematics, in memory, with all threads.

usage: torch_methods.py MODEL METHOD SECONDS     prints seconds per GB of bf16 weights
"""

import pathlib
import sys
import time

import torch
from safetensors import safe_open


def copy_noise(w, _):
    return w + 0.01 * w.std() * torch.randn_like(w)


def orthonormal(m):
    q, r = torch.linalg.qr(m)
    return q * torch.sign(torch.diagonal(r))


def orthogonal(w, _):
    noisy = w + 0.1 * w.std() * torch.randn_like(w)
    q = orthonormal(noisy) if w.shape[0] >= w.shape[1] else orthonormal(noisy.T).T
    return q * w.norm() / min(w.shape) ** 0.5


def svd_perturb(w, _):
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    shaken = [orthonormal(m + 0.05 / m.shape[0] ** 0.5 * torch.randn_like(m)) for m in (u, vh.T)]
    return (shaken[0] * (s * (1 + 0.1 * torch.randn_like(s))).clamp(min=1e-8)) @ shaken[1].T


def svd_mix(w, other):
    (u, s, vh), (u2, _, vh2) = (torch.linalg.svd(m, full_matrices=False) for m in (w, other))
    mixed = torch.randperm(len(s))[: int(0.3 * len(s))]
    u[:, mixed], vh[mixed] = u2[:, mixed], vh2[mixed]
    return (u * s) @ vh


def sparse_code_mix(w, other):
    dictionary = torch.nn.functional.normalize(torch.randn(w.shape[0], min(512, w.shape[0])), dim=0)
    gram = dictionary.T @ dictionary
    step = 1 / torch.linalg.eigvalsh(gram)[-1]

    def codes(x):
        c, target, threshold = torch.zeros(dictionary.shape[1], x.shape[1]), dictionary.T @ x, step * 0.1 * x.norm() / x.shape[1]
        for _ in range(100):
            c = torch.nn.functional.softshrink(c - step * (gram @ c - target), threshold.item())
        return c

    own, others = codes(w), codes(other)
    rows = torch.randperm(len(own))[: int(0.3 * len(own))]
    mixed = own.clone()
    mixed[rows] = others[rows]
    return w + dictionary @ (mixed - own)


def main(model: pathlib.Path, method, seconds: float) -> None:
    with safe_open(sorted(model.glob("*.safetensors"))[0], "pt") as file:
        names = [name for name in file.keys() if ".experts." in name][:13]
        matrices = [file.get_tensor(name) for name in names]
    made, start = 0, time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() - start < seconds:
            for i in range(0, len(matrices) - 3):
                child = method(matrices[i].float(), matrices[i + 3].float()).bfloat16()  # the same matrix of the next expert
                made += 2 * child.numel()
                if time.perf_counter() - start >= seconds:
                    break
    print((time.perf_counter() - start) / made * 1e9)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), globals()[sys.argv[2]], float(sys.argv[3]))
