"""Checksums of labels, by which two versions can be compared: does a change leave results as they are?

    python benchmarks/labels_of.py                  # the demo's volume, and em and ms where their data and models are
    python benchmarks/labels_of.py demo lung

Each is the SHA-256 of a label map's voxels as nibabel reads them, (x, y, z) with x slowest. Where a network is not
sure, the last digits of its outputs decide, and these depend on processor, threads and versions of libraries: compare
only what the same machine and environment gives. The exit code is 2 if data or models are missing.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.common.bench import Bench
from benchmarks.common.registry import choose_case, exit_code, load_dataset
from coarse2fine.config.reader import load_config
from coarse2fine.demo import ASSETS, IMAGE
from coarse2fine.io import read_volume
from coarse2fine.pipeline import Pipeline

MODES = ("accelerated", "two-stage")
DEMO, DEFAULT = "demo", ("demo", "em", "ms")


def checksum(labels: NDArray[np.generic]) -> str:
    """Of a label map of shape (z, y, x); see the module's docstring."""
    return hashlib.sha256(np.ascontiguousarray(labels.T).tobytes()).hexdigest()


def open_case(name: str, *settings: str) -> tuple[Pipeline, Sequence[Path]]:
    """What segments the first test case of a data set, or the demo's volume, and its files.

    Raises:
        C2FError: If there is no such data set, or its data or models are not here.
    """
    if name == DEMO:
        models = [f"{stage}.model={ASSETS / stage}" for stage in ("coarse", "fine")]
        return Pipeline.from_config(load_config(DEMO, [*models, *settings])), [IMAGE]
    dataset = load_dataset(name)
    bench = Bench(dataset, choose_case(dataset), overrides=settings)
    return bench.pipeline(), bench.files


def show(name: str) -> None:
    """Print the checksums of each mode, on the CPU; errors as of ``open_case``."""
    for mode in MODES:
        pipeline, files = open_case(name, f"mode={mode}", "device=cpu")
        volume = read_volume(files, [model.reader for model in pipeline.models])
        print(f"{name} {mode} {checksum(pipeline(volume).labels)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all checksums; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", default=DEFAULT, metavar="NAME", help="demo, or a data set")
    console = Console(stderr=True)
    return max(exit_code(partial(show, name), console) for name in parser.parse_args(arguments).names)


if __name__ == "__main__":
    sys.exit(main())
