"""``c2f-infer --dry-run``: what a run over a store will take, told and, if wanted, as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json

from rich.console import Console

from coarse2fine.config.schema import Config
from coarse2fine.io import atomic_write, check_writable
from coarse2fine.large.estimate import Estimate, estimate_store
from coarse2fine.large.output import name_output
from coarse2fine.large.phases import Settings
from coarse2fine.large.source import Source
from coarse2fine.system.terminal import plain
from coarse2fine.system.timing import Progress


def dry_run(options: argparse.Namespace, config: Config, source: Source, progress: Progress) -> Estimate:
    """Estimate a run; of what it would write, nothing is written.

    Raises:
        C2FError: If anything is wrong that a run would find out at once, or a block that is tried fails.
    """
    output = name_output(options.output, objects=options.instances, overwrite=options.overwrite, shards=options.shards)
    if options.report:
        check_writable(options.report, options.overwrite)
    settings = Settings(options.trust_checkpoint)
    found = estimate_store(config, source, output, settings, progress, workers=options.workers or 1)
    if options.report:
        with atomic_write(options.report) as temporary:
            temporary.write_text(json.dumps(dataclasses.asdict(found), indent=1) + "\n", encoding="utf-8")
    return found


def tell_estimate(found: Estimate, console: Console) -> None:
    """An estimate in a few lines, on the standard output."""
    outside = found.blocks["all"] - found.blocks["looked_at"]
    low, high = found.hours_range
    shape = " x ".join(map(str, found.result["shape"]))
    rows = {
        "volume": f"{found.voxels / 1e6:,.1f} million voxels",
        "blocks": f"{found.blocks['looked_at']:,} of up to {' x '.join(map(str, found.block))} voxels"
        + (f"; {outside:,} further ones lie outside of the mask" if found.in_mask is not None else ""),
        "to read": f"up to {_bytes(found.bytes_to_read)}, unpacked",
        "result": f"{shape} {found.result['type']}, {found.result['levels']} levels, {_bytes(found.result['bytes'])} "
        "before compression",
        "memory": f"{_bytes(found.memory_mb['resident'] * 1e6)} for each of {found.workers} processes"
        + (f", and {_bytes(found.memory_mb['gpu'] * 1e6)} of the GPU's" if "gpu" in found.memory_mb else ""),
        "measured": ", ".join(f"{block['seconds']:.2f} s" for block in found.measured) + " for a block",
        "time": f"{_duration(found.hours)} ({_duration(low)} to {_duration(high)}) with {found.workers} processes",
    }
    for name, text in rows.items():
        console.print(plain(f"{name:<9} {text}"), soft_wrap=True)
    console.print("nothing was written", soft_wrap=True)


def _bytes(count: float) -> str:
    """A number of bytes, for people.

    >>> _bytes(999), _bytes(2_500_000)
    ('999 bytes', '2.5 MB')
    """
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f} bytes"


def _duration(hours: float) -> str:
    """A time, for people.

    >>> _duration(0.001), _duration(0.5), _duration(30.25)
    ('3.6 s', '30 min', '30.2 h')
    """
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.3g} min" if hours >= 1 / 60 else f"{hours * 3600:.2g} s"
