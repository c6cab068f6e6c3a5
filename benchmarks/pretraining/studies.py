"""All studies, and what one is."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from benchmarks.common.machine import SHARED
from benchmarks.pretraining.rows import Baselines, Row

STUDIES = ("hippocampus", "product", "radiographs", "lungs", "records", "proxy", "explain")


@dataclass(frozen=True, slots=True)
class Setup:
    """How a study is run.

    Attributes:
        seeds: Every method is trained with each of them.
        work: Folder for what is between, such as pretrained weights; kept as long as the study goes on.
        steps: Of each training, if not the study's own numbers.
        data: Folder of the data sets.
        done: Rows that are there from an earlier run.
        bf16: Whether networks of nnU-Net's plans compute in bfloat16.
    """

    seeds: Sequence[int]
    work: Path
    steps: int | None = None
    data: Path = SHARED / "data"
    done: Sequence[Row] = field(default=())
    bf16: bool = False

    def has(self, method: str, labels: str, seed: int) -> bool:
        """Whether a training has been measured."""
        return any((row.method, row.labels, row.seed) == (method, labels, seed) for row in self.done)

    def of(self, seed: int) -> Setup:
        """The part of one seed."""
        return replace(self, seeds=(seed,))


class Study(Protocol):
    """A module of this folder."""

    TITLE: str
    """What is asked."""
    ABOUT: str
    """Data, networks, steps, and what is measured on which cases: all that a reader needs to judge the rows."""
    BASELINES: Baselines

    def study(self, setup: Setup) -> Iterator[Sequence[Row]]:
        """Train and measure what ``setup`` does not have; gives all rows of a training at once, which are kept."""


def find(name: str) -> Any:
    """The module of a study, imported only when it is asked for.

    Returns:
        A ``Study``.
    """
    return importlib.import_module(f"benchmarks.pretraining.{name}")
