"""All studies, what one is, and its file of results: written after every row, and gone on with."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.common.machine import SHARED, environment
from benchmarks.pretraining.rows import Baselines, Row, from_json, to_json
from coarse2fine.errors import ConfigError, OutputError
from coarse2fine.io import atomic_write

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
    """

    seeds: Sequence[int]
    work: Path
    steps: int | None = None
    data: Path = SHARED / "data"
    done: Sequence[Row] = field(default=())

    def has(self, method: str, labels: str, seed: int) -> bool:
        """Whether a training has been measured."""
        return any((row.method, row.labels, row.seed) == (method, labels, seed) for row in self.done)


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


@dataclass(frozen=True, slots=True)
class Results:
    """A file of results.

    Attributes:
        study: Its name.
        steps: Of trainings, if not the study's own; other steps belong into another file.
        rows: So far.
        seconds: That they took, over all runs.
        finished: Whether these are all.
        seeds, command, environment: Of the last run.
    """

    study: str
    steps: int | None
    rows: Sequence[Row] = ()
    seconds: float = 0.0
    finished: bool = False
    seeds: Sequence[int] = ()
    command: str = ""
    environment: Any = None

    def to_json(self) -> dict[str, Any]:
        """As the file holds it."""
        about = {name: getattr(self, name) for name in self.__slots__ if name != "rows"}
        return about | {"rows": to_json(self.rows, find(self.study).BASELINES)}


def load(path: Path) -> Results:
    """Read a file of results.

    Raises:
        ConfigError: If it is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Results(**{**document, "rows": from_json(document["rows"])})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} holds no results of a study ({error!r})", "Name another file (--out).") from None


def run(
    name: str,
    out: Path,
    work: Path,
    seeds: Sequence[int],
    command: str,
    *,
    steps: int | None = None,
    data: Path = SHARED / "data",
    told: Callable[[Row], None] = lambda row: None,
) -> Results:
    """Run a study, or go on with it.

    Args:
        name: One of ``STUDIES``.
        out: File of results.
        work: Folder for what is between.
        seeds: See ``Setup``.
        command: That does this.
        steps: See ``Setup``.
        data: See ``Setup``.
        told: Of each new row.

    Raises:
        C2FError: If the file is another study's or cannot be written, or something that the study needs is missing.
    """
    known = load(out) if out.exists() else Results(name, steps)
    if (known.study, known.steps) != (name, steps):
        raise ConfigError(
            f"{out} holds results of {known.study} with {_steps(known.steps)}, not of {name} with {_steps(steps)}",
            "Name another file (--out).",
        )
    rows, began, before = list(known.rows), time.monotonic(), known.seconds

    def write(*, finished: bool) -> Results:
        taken = round(before + time.monotonic() - began, 1)
        results = Results(name, steps, rows, taken, finished, list(seeds), command, environment())
        with atomic_write(out) as path:
            path.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
        return results

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {error.filename}: {error.strerror}", "Choose other folders.") from error
    for found in find(name).study(Setup(seeds, work, steps, data, tuple(known.rows))):
        rows += found
        write(finished=False)
        for row in found:
            told(row)
    return known if known.finished and len(rows) == len(known.rows) else write(finished=True)


def _steps(steps: int | None) -> str:
    return "its own steps" if steps is None else f"--steps {steps}"
