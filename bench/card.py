"""The device of a benchmark: its name, what it can compute at most, its memory, and where its results go."""

import pathlib
import re
import statistics
import subprocess
import threading
import time

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
# Dense products in bf16 with f32 sums, in Tflop/s, from NVIDIA's data sheets (half of the figures given "with sparsity"). The first name that
# the card's own contains counts.
PEAK_TFLOPS = {"B200": 2250, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362, "L4": 121,
               "A10G": 70, "A10": 125, "RTX 6000 Ada": 364, "RTX 5090": 209, "RTX 4090": 165, "RTX 3090": 71}


def peak_flops(name: str) -> float | None:
    """Floating-point operations a second of the card by its data sheet; None for a card that is not listed."""
    found = next((peak for card, peak in PEAK_TFLOPS.items() if re.search(rf"\b{re.escape(card)}\b", name)), None)
    return None if found is None else found * 1e12


def card_name(device: str) -> str:
    if device == "cuda":
        import torch
        return torch.cuda.get_device_name()
    model = re.search(r"^model name\s*:\s*(.+)$", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return model.group(1) if model else "CPU"


def results_file(theme: str, card: str) -> pathlib.Path:
    slug = re.sub(r"[^a-z0-9]+", "_", card.lower()).strip("_")
    return RESULTS / f"{theme}_{slug}_{time.strftime('%Y%m')}.md"


def median_seconds(step, device: str, warm_up: int = 3, repeats: int = 20) -> float:
    import torch
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    for i in range(warm_up + repeats):
        wait()
        begin = time.perf_counter()
        step()
        wait()
        if i >= warm_up:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def product_rate(device: str, n: int = 8192) -> float:
    """Floating-point operations a second of an n x n x n product in bf16."""
    import torch
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * n**3 / median_seconds(lambda: a @ b, device)


class DeviceMemory:
    """The most memory of GPUs that a process held, as nvidia-smi tells it (its CUDA context included); `bytes` is None if it told nothing."""

    def __init__(self, pid: int) -> None:
        self.bytes, self._pid, self._over = None, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "DeviceMemory":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            try:
                told = subprocess.run(["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"],
                                      capture_output=True, text=True)
            except FileNotFoundError:
                return
            for line in told.stdout.splitlines():
                pid, _, mib = line.partition(",")
                if pid.strip() == str(self._pid) and mib.strip().isdigit():
                    self.bytes = max(self.bytes or 0, int(mib) * 2**20)
