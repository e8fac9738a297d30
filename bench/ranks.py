"""Training runs on several ranks beside the steps that `coppice plan --cluster` simulates for them.

usage: ranks.py POINTS RUN RANKS=RUN... [--own-machines]     such as 2=runs/two

POINTS are timed collectives of these ranks (docs/scaling.md). The first RUN is on one rank and left a checkpoint: its step time stands for the speed of the machine. The other
runs have the same settings. All ranks of a run share that machine: each has its part of the speed, and what is sent hides behind nothing, because the cores that compute also
copy the messages. With --own-machines each rank has all of the speed, and messages hide as the simulation says. A run's time is the median over its steps, without the first
five.

Bytes are compared too where metrics.jsonl counts them (sent/reduce_scatter, sent/all_gather and sent/all_to_all: bytes that one rank sent in a step).
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tomllib

COPPICE = os.environ.get("COPPICE_BIN", str(pathlib.Path(__file__).resolve().parent.parent / "build/release/coppice"))
COLLECTIVES = ("reduce_scatter", "all_gather", "all_to_all")
WARM_UP = 5


class Run:
    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        settings = tomllib.loads((self.directory / "config.toml").read_text())
        self.train, self.sequence = settings["train"], settings["data"]["sequence_length"]
        self.groups = settings.get("parallel", {}).get("expert", 1)
        lines = [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]
        self.steps = [line for line in lines if "tokens_per_s" in line][WARM_UP:]
        if not self.steps:
            sys.exit(f"{directory}: no more than {WARM_UP} steps; wanted more")
        self.seconds = statistics.median(self.train["batch_tokens"] / step["tokens_per_s"] for step in self.steps)

    def sent(self, collective):
        counted = [step[f"sent/{collective}"] for step in self.steps if f"sent/{collective}" in step]
        return statistics.mean(counted) if counted else None

    def checkpoint(self):
        found = sorted((self.directory / "checkpoints").glob("step-*"))
        if not found:
            sys.exit(f"{self.directory}: no checkpoint; wanted one to read the sizes of the model from")
        return found[-1]


def simulate(model, run, points, ranks, flops_per_s):
    """The simulated step of a run's model, as `plan --json` has it."""
    is_f32 = run.train["dtype"] == "f32"
    command = [COPPICE, "plan", model, "--cluster", points, "--gpus", ranks, "--expert-parallel", run.groups, *(["--zero1"] if ranks > 1 else []),
               "--weight-dtype", "f32" if is_f32 else "bf16", "--master-dtype", "none" if is_f32 else "f32", "--batch-tokens", run.train["batch_tokens"],
               "--sequence-length", run.sequence, "--micro-batch", run.train["micro_batch"], "--utilisation", 1, "--device-flops", flops_per_s, "--device-memory-rate", 1e30,
               *(["--recompute"] if run.train.get("recompute") else []), "--json", "--quiet"]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return json.loads(done.stdout)["cluster"]["rows"][0]["before"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points")
    parser.add_argument("run")
    parser.add_argument("others", nargs="+")
    parser.add_argument("--own-machines", action="store_true")
    options = parser.parse_args()
    single = Run(options.run)
    model = single.checkpoint()
    guess = 1e9
    speed = guess * simulate(model, single, options.points, 1, guess)["seconds"] / single.seconds
    print("| ranks | experts over | simulated ms | measured ms | error | compute | all-to-all | gradients | values |\n|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    bytes_lines = []
    for word in [f"1={options.run}", *options.others]:
        parsed = re.fullmatch(r"(\d+)=(.+)", word)
        if not parsed:
            sys.exit(f"{word}: wanted RANKS=RUN, such as 2=runs/two")
        ranks, run = int(parsed[1]), Run(parsed[2])
        step = simulate(model, run, options.points, ranks, speed / (1 if options.own_machines else ranks))
        if not options.own_machines:
            for part in ("reduce", "gather"):
                step[part] += step[f"hidden_{part}"]
                step["seconds"] += step[f"hidden_{part}"]
        parts = " | ".join(f"{1e3 * step[part]:.1f}" for part in ("compute", "all_to_all", "reduce", "gather"))
        error = round(100 * (step["seconds"] / run.seconds - 1), 1) + 0.0  # no "-0.0"
        print(f"| {ranks} | {run.groups} | {1e3 * step['seconds']:.1f} | {1e3 * run.seconds:.1f} | {error:+.1f} % | {parts} |")
        for name in COLLECTIVES:
            if (counted := run.sent(name)) is not None:
                bytes_lines.append(f"| {ranks} | {run.groups} | {name} | {step['sent_bytes'][name]:,} | {counted:,.0f} |")
    if bytes_lines:
        print("\n| ranks | experts over | collective | bytes by the formula | bytes counted |\n|---:|---:|---|---:|---:|", *bytes_lines, sep="\n")


if __name__ == "__main__":
    main()
