"""How long c2f-infer takes to start: until it has told its version or its options, and until a network first runs.

    python benchmarks/startup.py --out benchmarks/results/startup.json

Each is a process of its own, run several times in turns; the first pass is that of the demo's coarse network, behind
imports, models and the volume. What counts is the median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.machine import environment, use_threads
from coarse2fine.io import atomic_write

MAIN = "import sys; from coarse2fine.cli.infer import main; sys.exit(main())"
"""What the installed command does."""
FIRST_PASS = """
import os, sys, time, torch
from torch import nn
from coarse2fine.cli.infer import main

def stop(module, inputs):
    if inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].dim() == 5:
        print("first pass", time.time(), flush=True)
        os._exit(0)

nn.modules.module.register_module_forward_pre_hook(stop)
sys.exit(main())
"""
"""The same, which ends where the first module gets a batch of volumes."""


def seconds_of(code: str, *words: str) -> float:
    """From the start of a process to its end, or to the first pass that it tells of.

    Raises:
        subprocess.CalledProcessError: If it fails.
    """
    began = time.time()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    ended = time.time()
    told = [line for line in done.stdout.splitlines() if line.startswith("first pass")]
    return float(told[0].split()[-1]) - began if told else ended - began


def measure(repeat: int) -> dict[str, list[float]]:
    """Seconds of each, in turns."""
    found: dict[str, list[float]] = {"version": [], "help": [], "first pass of the demo": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(repeat):
            found["version"].append(seconds_of(MAIN, "--version"))
            found["help"].append(seconds_of(MAIN, "--help"))
            output = Path(folder) / str(turn)
            found["first pass of the demo"].append(seconds_of(FIRST_PASS, "--demo", "-o", str(output)))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="runs of each (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON")
    options = parser.parse_args(arguments)
    if options.repeat < 1:
        parser.error("--repeat is at least 1")
    use_threads(None)
    seconds = measure(options.repeat)
    medians = {name: round(statistics.median(runs), 3) for name, runs in seconds.items()}
    document = {
        "command": f"python benchmarks/startup.py --repeat {options.repeat}",
        "environment": environment(),
        "median_s": medians,
        "runs_s": {name: [round(one, 3) for one in runs] for name, runs in seconds.items()},
    }
    with atomic_write(options.out) as path:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
