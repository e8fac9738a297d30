"""Expansion on disk: coppice beside its peers on the same generated checkpoint in the same run.

usage: expand.py [--size GB] [--rounds N] [--work DIR] [--warm] [--skip NAME ...] [--peer NAME=COMMAND ...]

Prints a Markdown table: median wall seconds until the output is on the disk (synced), with a cold page cache where this user may drop it
and a warm one, ratios to `cp -r` of as many output bytes, and peak resident memory. In a peer's command {source} and {output} are replaced.
"""

import argparse
import os
import pathlib
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
COPPICE = os.environ.get("COPPICE_BIN", str(HERE.parent / "build/release/coppice"))
DROP = pathlib.Path("/proc/sys/vm/drop_caches")
BASE = "cp -r, same bytes"
ELEMENTWISE = ["copy_noise", "scaled_copy", "interpolate", "drop_upcycle", "drop_units"]


def contestants_of(source: pathlib.Path, output: pathlib.Path, peers: list[str]) -> dict[str, list[str]]:
    expand = [COPPICE, "expand", str(source), str(output), "--experts", "2x", "--router-init", "copy", "--quiet"]
    twice = f"mkdir {shlex.quote(str(output))} && cp -r {shlex.quote(str(source))} {shlex.quote(str(output / 'a'))} && " \
            f"cp -r {shlex.quote(str(source))} {shlex.quote(str(output / 'b'))}"
    contestants = {
        "coppice copy": expand,
        **{f"coppice {method}": [*expand, "--expert-init", method] for method in ELEMENTWISE},
        BASE: ["sh", "-c", twice],
        "safetensors script": [sys.executable, str(HERE / "peers/expand_script.py"), str(source), str(output)],
        "transformers": [sys.executable, str(HERE / "peers/transformers_expand.py"), str(source), str(output)],
    }
    for peer in peers:
        name, _, command = peer.partition("=")
        contestants[name] = [word.format(source=source, output=output) for word in shlex.split(command)]
    return contestants


def sync(path: pathlib.Path) -> None:
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


def set_cache(source: pathlib.Path, cold: bool) -> None:
    if cold:
        os.sync()
        DROP.write_text("3")
        return
    for file in source.iterdir():
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def timed(command: list[str], source: pathlib.Path, output: pathlib.Path, cold: bool) -> tuple[float, int]:
    """Wall seconds until the output is on the disk, and the process's peak resident bytes, mapped files included."""
    shutil.rmtree(output, ignore_errors=True)
    set_cache(source, cold)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        sync(output)
        seconds = time.perf_counter() - start
        if status != 0:
            errors.seek(0)
            sys.exit(f"{shlex.join(command)} failed: {errors.read().decode()[-500:]}")
    return seconds, usage.ru_maxrss * 1024


def table(times: dict[tuple[str, bool], list[float]], peaks: dict[str, int], caches: list[bool]) -> str:
    names = {True: "cold", False: "warm"}
    lines = ["| |" + "".join(f" {names[c]}, s | to cp |" for c in caches) + " peak MiB |", "|---|" + "---:|---:|" * len(caches) + "---:|"]
    for name, peak in peaks.items():
        cells = ""
        for cache in caches:
            median = statistics.median(times[name, cache])
            cells += f" {median:.2f} | {median / statistics.median(times[BASE, cache]):.2f} |"
        lines.append(f"| {name} |{cells} {peak / 2**20:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=4.0, metavar="GB", help="size of the checkpoint")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", default=None, help="folder on the disk to measure")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND", help="another program to measure")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="a contestant to leave out")
    parser.add_argument("--warm", action="store_true", help="leave the page cache alone: others may be using the machine")
    options = parser.parse_args()
    caches = [True, False] if os.access(DROP, os.W_OK) and not options.warm else [False]
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        source, output = pathlib.Path(work) / "source", pathlib.Path(work) / "output"
        # In a process of its own: what is started here counts this process's peak memory as its own, so it stays small.
        made = subprocess.run([sys.executable, HERE / "checkpoint.py", source, str(options.size)], check=True, stdout=subprocess.PIPE, text=True)
        size = int(made.stdout)
        contestants = contestants_of(source, output, options.peer)
        contestants = {name: command for name, command in contestants.items() if name == BASE or name not in options.skip}
        times = {(name, cache): [] for name in contestants for cache in caches}
        peaks = dict.fromkeys(contestants, 0)
        for _ in range(options.rounds):  # in turn, so that a noisy minute hits all alike
            for cold in caches:
                for name, command in contestants.items():
                    seconds, peak = timed(command, source, output, cold)
                    times[name, cold].append(seconds)
                    peaks[name] = max(peaks[name], peak)
        shutil.rmtree(output)
    print(f"expand 2x of {size / 1e9:.2f} GB bf16; median of {options.rounds}; {os.cpu_count()} cores, {platform.release()}")
    print(table(times, peaks, caches))


if __name__ == "__main__":
    main()
