"""``summary.json`` beside ``results.json``: each row over all cases, beside one-stage mode."""

from __future__ import annotations

import json
from typing import Any, Final

from benchmarks.page.findings import Row, Summary

FILE: Final = "summary.json"


def summary_text(summary: Summary) -> str:
    """The file's text: a list of rows, in the order of tables."""
    rows = [_record(row, summary) for row in summary.judged]
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def _record(row: Row, summary: Summary) -> dict[str, Any]:
    paired = row["paired"]
    return {
        "row": row["row"],
        "title": row["title"],
        "cases": len(summary.cases),
        "trained_on": summary.trained_on,
        "total_s": row["total_s"],
        "ratio": row["ratio"],
        "dice": row["dice"],
        "iou": row["iou"],
        "measure": summary.quality,
        "deviation": paired.deviation,
        "difference": paired.difference,
        "difference_interval": paired.interval,
        "non_inferior": paired.non_inferior,
        "dice_by_label": row["dice_by_label"],
    }
