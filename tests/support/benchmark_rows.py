"""Rows as ``benchmarks/run.py`` writes them, made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

OTHERS = ("nnunet", "nnunet_step_0.8", "masked_tiles")


def record(row: str, seconds: float | list[float], score: float, **more: Any) -> dict[str, Any]:
    """A row as ``results.json`` holds it; the score is both Dice and IoU."""
    runs = seconds if isinstance(seconds, list) else [seconds]
    known = {"row": row, "title": row, "ours": row not in OTHERS, "case": "a", "split": "test", "trained_on": False}
    known |= {"total_s": float(np.median(runs)), "dice": score, "iou": score, "hd95": None, "tolerance": 1.0}
    return known | {"runs": [{"total_s": one} for one in runs], "peak_rss_mb": 500.0} | more


def write(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    """A data set's results."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "results.json").write_text(json.dumps(rows))
    known = {"machine": "a machine", "device": "cpu", "cores": 2, "threads": 1, "load_average": [0.2, 0, 0]}
    sessions = [
        {"command": f"python benchmarks/run.py --dataset {name}{more}", "date": date, "environment": known | versions}
        for more, date in (("", "2026-01-01"), (" --experiments all", "2026-01-02"))
        for versions in [{"versions": {"torch": "9.9"}}]
    ]
    (folder / name / "environment.json").write_text(json.dumps(sessions))
