"""What a run over a store did: the report of any run, summed over cells, and what only stores have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from coarse2fine.counts import Tally
from coarse2fine.large.execution.tasks import Failure
from coarse2fine.large.execution.work import Key
from coarse2fine.nnunet.precision import used_precision
from coarse2fine.pipeline import Pipeline
from coarse2fine.promise.statement import promised
from coarse2fine.report import NOTHING_FOUND, NetworkTime, RunReport, Timing, peak_memory_mb, versions

EXACT = "exact"
ESTIMATE = (
    "an estimate, summed over cells: what boxes of several cells share beyond the cells' borders may count repeatedly"
)
Payloads = Mapping[Key, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport(RunReport):
    """What a run did.

    Times in ``timing_s`` and ``network_s`` but for ``total`` are those inside of blocks, summed over all, whoever did
    them. What boxes cover of other cells counts where these are not known to cover it themselves, so ``coverage`` is
    exact for one cell, and an estimate for many: what several cells reach into may count more than once.

    Attributes:
        volume: Identity of the input.
        layout: Cells, blocks and scale levels.
        seconds: Wall time by phase, of this command only if it resumed another.
        work_s: Time inside of blocks by stage, as booked.
        counts: Voxels of the volume, ``Tally``'s numbers, and objects.
        failures: Blocks that were given up.
        coverage_is: Whether ``coverage`` is exact, or in what sense it is an estimate.
    """

    volume: Mapping[str, Any]
    layout: Mapping[str, Any]
    seconds: Mapping[str, float]
    work_s: Mapping[str, float]
    counts: Mapping[str, float]
    failures: tuple[Failure, ...]
    coverage_is: str


def count_cells(layout: Mapping[str, Any]) -> int:
    """How many cells a volume is divided into.

    >>> count_cells({"cells": [[0, 16], [0, 64, 100], [0, 64, 128, 130]]})
    6
    """
    return prod(len(edges) - 1 for edges in layout["cells"])


def sum_up(payloads: Iterable[Mapping[str, Any]]) -> tuple[Tally, dict[str, float]]:
    """Numbers and times of all blocks together."""
    total, seconds = Tally(), Counter[str]()
    for payload in payloads:
        total += Tally(**payload.get("counts", {}))
        seconds.update(payload.get("seconds", {}))
    return total, dict(seconds)


def notes_of(payloads: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """What users should know of how it went, each once, however many blocks say so; see ``Run.notes``.

    >>> notes_of([{"notes": ["slow"]}, {}, {"notes": ["slow", "short"]}])
    ('slow', 'short')
    """
    return tuple(dict.fromkeys(text for payload in payloads for text in payload.get("notes", ())))


def sum_labels(segmented: Payloads, merged: Payloads) -> dict[str, int]:
    """Voxels of each foreground label: of cells that were merged what they hold now, of others what they were given.

    >>> segmented = {(0,): {"labels": {"0_0_0": {"1": 5}, "0_0_1": {"1": 2}}}}
    >>> sum_labels(segmented, {(0, 0, 1): {"labels": {"1": 3, "2": 1}}})
    {'1': 8, '2': 1}
    """
    cells = {name: found for payload in segmented.values() for name, found in payload["labels"].items()}
    cells |= {"_".join(map(str, key)): payload["labels"] for key, payload in merged.items()}
    total = Counter[str]()
    for found in cells.values():
        total.update(found)
    return {label: total[label] for label in sorted(total, key=int)}


def make_report(
    pipeline: Pipeline,
    blocks: Iterable[Mapping[str, Any]],
    labels: Mapping[str, int],
    doubts: tuple[str, ...],
    voxels: int,
    objects: int | None,
    in_mask: int | None = None,
    **of_store: Any,
) -> StoreReport:
    """The report.

    Args:
        pipeline: Models and settings.
        blocks: Payloads of all blocks that count, take time or have notes.
        labels: Voxels of each foreground label.
        doubts: What the user should know of input and settings.
        voxels: Of the volume.
        objects: How many there are; None if nobody counted.
        in_mask: Voxels that a mask sets; None without one.
        of_store: What only stores have, see ``StoreReport``; ``seconds`` has the ``total``.
    """
    blocks = list(blocks)
    total, work_s = sum_up(blocks)
    segmenter = pipeline.segmenter
    promise = promised(pipeline.config, None, masked=in_mask is not None) if segmenter else None
    return StoreReport(
        case=str(of_store["volume"]["where"]).rstrip("/").rpartition("/")[2],
        mode=pipeline.config.mode,
        timing_s=Timing.of(work_s | {"total": of_store["seconds"]["total"]}),
        network_s=NetworkTime.of(work_s),
        boxes=total.boxes,
        canvases=total.network_inputs,
        coverage=total.coverage,
        coverage_is=EXACT if count_cells(of_store["layout"]) == 1 else ESTIMATE,
        labels=dict(labels),
        warnings=(
            *(segmenter.warnings if segmenter else ()),
            *total.warnings,
            *(promise.warnings if promise else ()),
            *notes_of(blocks),
            *doubts,
            *(() if labels else (NOTHING_FOUND,)),
        ),
        device=str(pipeline.fine.device),
        precision=used_precision(pipeline.fine),
        config=pipeline.config.to_dict(),
        agent=segmenter.selector.describe() if segmenter else {},
        promise=promise,
        in_mask=in_mask,
        peak_memory_mb=peak_memory_mb(pipeline.fine.device),
        versions=versions(),
        work_s=work_s,
        counts={
            "voxels": voxels,
            **total.to_dict(),
            **({} if objects is None else {"objects": objects}),
        },
        **of_store,
    )
