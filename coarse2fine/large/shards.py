"""Results in shards, files of many chunks each: fewer files, each written once and by one process.

Cells end where chunks do, and shards are larger than cells. So cells write into chunks in the work folder, and what is
complete is gathered shard by shard.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from canvas import Box, Triple, triple
from coarse2fine.errors import ConfigError
from coarse2fine.io import LabelSpec
from coarse2fine.large.execution.work import Key
from coarse2fine.large.job import Job, store_of
from coarse2fine.system.timing import Run

CHUNKS = 4
"""Chunks along each edge of a shard: 256 x 512 x 512 voxels, of which one with 64-bit objects takes half a gigabyte."""


def parse_shard(text: str, chunk: Triple) -> Triple:
    """The shape of a shard.

    Args:
        text: Three numbers Z,Y,X, or empty for the usual shape.
        chunk: Of the result, of which shards hold whole ones.

    Raises:
        ConfigError: If it is no such shape.

    >>> parse_shard("", (64, 128, 128)), parse_shard("64,256,128", (64, 128, 128))
    ((256, 512, 512), (64, 256, 128))
    """
    if not text:
        return triple(CHUNKS * edge for edge in chunk)
    parts = text.split(",")
    edges = [int(part) if part.strip().isdecimal() else 0 for part in parts]
    if len(edges) == 3 and all(edge and edge % size == 0 for edge, size in zip(edges, chunk, strict=True)):
        return triple(edges)
    near = ",".join(
        str(max(round(edge / size), 1) * size) for edge, size in zip([*edges, 0, 0, 0][:3], chunk, strict=True)
    )
    raise ConfigError(
        f"--shards {text!r} is no shape Z,Y,X of whole chunks, which are {' x '.join(map(str, chunk))} voxels here",
        f"Use --shards {near}, or --shards alone for {' x '.join(str(CHUNKS * edge) for edge in chunk)}.",
    )


@dataclass(frozen=True, slots=True)
class GatherShard:
    """One shard of the result's finest level, from the chunks that cells wrote."""

    job: Job

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        """Writes it; a shard of background only is none."""
        box = units_box(self.job.result, triple(key))
        labels = store_of(self.job.written).read(box)
        if labels.any():
            store_of(self.job.result).write(box, labels)
        return {}


def shards_of(spec: LabelSpec) -> list[Triple]:
    """Indices of all shards of the finest level."""
    ranges = (range(-(-edge // size)) for edge, size in zip(spec.grid.shape, spec.unit, strict=True))
    return [triple(index) for index in itertools.product(*ranges)]


def units_box(spec: LabelSpec, index: Triple) -> Box:
    """The voxels of a shard of the finest level."""
    start = (i * edge for i, edge in zip(index, spec.unit, strict=True))
    return Box.of(start, spec.unit).clip(Box.whole(spec.grid.shape))
