"""Ranks as processes, started as a launcher would start them."""

import os
import re
import socket
import subprocess

PROGRAM = os.path.join(os.environ["COPPICE_BUILD"], "tests", "dist_rank")
LATEST_MS = 10_000  # every other rank has ended by then


def free_port():
    with socket.socket() as s:
        s.bind(("", 0))
        return s.getsockname()[1]


class Ranks:
    """Processes of `dist_rank`, one a rank; their outputs are read when they have ended."""

    def __init__(self, size, *, start=None, address="127.0.0.1", port=None, namespaces=None, **variables):
        port = port or free_port()
        self.place = f"{address}:{port}"
        self.processes = {}
        for rank in range(size) if start is None else start:
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "PMI_"))}
            environment |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": address, "MASTER_PORT": port}
            environment |= variables
            inside = ["ip", "netns", "exec", namespaces[rank]] if namespaces else []
            self.processes[rank] = subprocess.Popen(
                [*inside, PROGRAM], env={k: str(v) for k, v in environment.items()}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.communicate()

    def name(self, rank):
        return f"rank {rank} (host {socket.gethostname()}, process {self.processes[rank].pid})"

    def line(self, rank, start):
        """Reads the output of a rank up to the line that begins so."""
        for line in self.processes[rank].stdout:
            if line.startswith(start):
                return line
        raise AssertionError(f"rank {rank} ended without '{start}'")

    def end(self, ranks=None, seconds=60):
        """Waits for the ranks; gives {rank: (status, output)}."""
        ended = {}
        for rank, process in self.processes.items():
            if ranks is None or rank in ranks:
                output = process.communicate(timeout=seconds)[0]
                ended[rank] = process.returncode, output
        return ended


def fatal_ms(output):
    return int(re.search(r"fatal at (\d+)", output).group(1))


def failure(output):
    """When a rank failed, and its sentence."""
    found = re.search(r"failed at (\d+): (.*)", output)
    assert found, output
    return int(found.group(1)), found.group(2)
