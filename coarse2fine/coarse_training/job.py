"""What a training is told, and where it leaves what it has to say."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from coarse2fine.io import atomic_write

CONFIGURATION, PLANS = "3d_lowres", "coarsePlans"
EPOCH = 20  # steps, after each of which the learning rate falls and the training can go on if it is cut off
RATE = 1e-3
"""Of AdamW, as in nnU-Net's variants that train with it."""
PROGRESS, STATE, LOG = "progress.json", "state.pt", "log.txt"


@dataclass(frozen=True, slots=True)
class Job:
    """A training.

    Attributes:
        data: nnU-Net's folder of preprocessed data: ``plans.json``, ``dataset.json`` and cases.
        work: Folder of this training: its log, progress and state.
        cases: Names of the cases to train on.
        mirror_axes: Axes of patches that may be mirrored.
        steps: Most training steps, a multiple of ``EPOCH``.
        seconds: Most time, over all pieces.
        device: ``cpu``, ``cuda`` or ``mps``.
        threads: Of PyTorch on the CPU.
        seed: Of all random numbers.
        foreground: What a foreground voxel counts in the cross entropy, where one of background counts 1.
        rate: First learning rate of AdamW.
    """

    data: Path
    work: Path
    cases: tuple[str, ...]
    mirror_axes: tuple[int, ...]
    steps: int
    seconds: float
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    foreground: float = 1.0
    rate: float = RATE

    def write(self, path: Path) -> None:
        """As JSON."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The inverse of ``write``."""
        values = json.loads(path.read_text(encoding="utf-8"))
        lists = {key: tuple(values[key]) for key in ("cases", "mirror_axes")}
        older = {"rate": 0.0}  # without one: by gradient descent, whose state AdamW cannot go on with
        return cls(**older | values | lists | {key: Path(values[key]) for key in ("data", "work")})
