"""What regions that share a network input do to each other: packed, and each in its own surroundings."""

from __future__ import annotations

from rich.console import Console

from benchmarks.common.bench import Bench
from benchmarks.common.registry import MissingDataError
from benchmarks.selection.measures import choose, look
from benchmarks.studies.geometry import Rows, real_case
from benchmarks.studies.measures import NORMS, segment_labels
from canvas import triple
from coarse2fine.evaluation.masks import dice
from coarse2fine.fine.sizes import plan_sizes

CONTEXTS = (0, 1, 2)
"""Surroundings that crops are shown with, times the usual ones."""
ALONE = "alone"


def neighbours(bench: Bench, console: Console) -> Rows:
    """Quality and ``mismatch`` of packed regions, for each norm and width of context, beside regions alone.

    Alone a region gets a canvas with all its surroundings that fit, and the statistics of that canvas, as in training.
    ``mismatch`` is one minus the Dice of foreground with the labels that this gives: 0 if packing changes nothing. It
    is the tile mismatch of Buglakova and others (arXiv 2503.19545), with neighbours on a canvas in the place of the
    position of tiles. Windows leave room for the widest context, so that all rows see the same regions at one scale;
    boxes do not grow.

    Args:
        bench: The case.
        console: Told what was measured.

    Raises:
        MissingDataError: If the configured rule chooses no region.
    """
    plan = plan_sizes(bench.config("canvas.packing=same_scale"), bench.model("fine"))
    contexts = [triple(times * width for width in plan.context) for times in CONTEXTS]
    window = triple(max(1, edge - 2 * width) for edge, width in zip(plan.canvas, contexts[-1], strict=True))
    fixed = ("canvas.packing=same_scale", f"rois.window={[*window]}", "fine.grow=0")
    real = real_case(bench, *fixed)
    seen, settings = look(real), real.pipeline.config.assign
    chosen = choose(real, seen, settings.agent, settings.weight)
    if not chosen:
        raise MissingDataError(f"{bench.case.name}: no region is chosen", "Lower rois.threshold.")
    apart, row = segment_labels(bench, real, seen, chosen, *fixed, "canvas.norm=canvas", alone=True)
    rows: Rows = [{"norm": ALONE, "context": "all", "mismatch": 0.0} | row]
    for norm in NORMS:
        for context in contexts:
            ways = (*fixed, f"canvas.norm={norm}", f"canvas.context={[*context]}")
            labels, row = segment_labels(bench, real, seen, chosen, *ways)
            name = " x ".join(map(str, context))
            rows.append({"norm": norm, "context": name, "mismatch": 1 - dice(labels > 0, apart > 0)} | row)
            told = f"norm {norm}, context {name}: mismatch {rows[-1]['mismatch']:.3f}"
            console.print(told, markup=False, highlight=False)
    return rows
