"""Coarse-to-fine 3D segmentation with nnU-Net v2: look coarsely everywhere, finely only where it matters.

>>> from coarse2fine import Pipeline, load_config, read_volume, write_labels   # doctest: +SKIP
>>> pipeline = Pipeline.from_config(load_config("covid", ["coarse.model=DIR", "fine.model=DIR"]))   # doctest: +SKIP
>>> volume = read_volume(["scan.nii.gz"])   # doctest: +SKIP
>>> result = pipeline(volume)   # doctest: +SKIP
>>> write_labels(result.labels, volume.grid, "labels.nii.gz")   # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coarse2fine.coarse.heatmap import CoarseResult, CoarseStage, predict_heatmap
    from coarse2fine.coarse.scene import Scene
    from coarse2fine.config.reader import load_config
    from coarse2fine.config.schema import Config
    from coarse2fine.errors import C2FError
    from coarse2fine.fine.canvases import plan_canvases
    from coarse2fine.fine.segment import FineStage, segment_boxes
    from coarse2fine.fine.sizes import plan_sizes
    from coarse2fine.fine.writeback import LabelWriter
    from coarse2fine.io import Grid, Volume, read_volume, write_labels
    from coarse2fine.measures import Measure, measure, row_of, write_table
    from coarse2fine.nnunet.loading import load_model
    from coarse2fine.nnunet.model import Model
    from coarse2fine.nnunet.sliding_window import sliding_window
    from coarse2fine.page.case import write_case_page
    from coarse2fine.pipeline import Pipeline, Result
    from coarse2fine.preprocessing.working_grid import WorkingView, view_volume
    from coarse2fine.regions.detect import RoiSettings, find_rois
    from coarse2fine.regions.tree import build_tree
    from coarse2fine.report import RunReport
    from coarse2fine.system.timing import Run

_HOMES = {
    "coarse.heatmap": ("CoarseResult", "CoarseStage", "predict_heatmap"),
    "coarse.scene": ("Scene",),
    "config.reader": ("load_config",),
    "config.schema": ("Config",),
    "errors": ("C2FError",),
    "fine.canvases": ("plan_canvases",),
    "fine.segment": ("FineStage", "segment_boxes"),
    "fine.sizes": ("plan_sizes",),
    "io": ("Grid", "Volume", "read_volume", "write_labels"),
    "measures": ("Measure", "measure", "row_of", "write_table"),
    "nnunet.loading": ("load_model",),
    "nnunet.model": ("Model",),
    "page.case": ("write_case_page",),
    "pipeline": ("Pipeline", "Result"),
    "report": ("RunReport",),
    "regions.detect": ("RoiSettings", "find_rois"),
    "regions.tree": ("build_tree",),
    "nnunet.sliding_window": ("sliding_window",),
    "preprocessing.working_grid": ("WorkingView", "view_volume"),
    "system.timing": ("Run",),
    "fine.writeback": ("LabelWriter",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "C2FError", "CoarseResult", "CoarseStage", "Config", "FineStage", "Grid", "LabelWriter", "Measure", "Model",
    "Pipeline", "Result", "RoiSettings", "Run", "RunReport", "Scene", "Volume", "WorkingView", "build_tree",
    "find_rois", "load_config", "load_model", "measure", "plan_canvases", "plan_sizes", "predict_heatmap",
    "read_volume", "row_of", "segment_boxes", "sliding_window", "view_volume", "write_case_page", "write_labels",
    "write_table",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: importing PyTorch for ``--help`` would take seconds."""
    if name not in _HOME:
        raise AttributeError(f"module 'coarse2fine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"coarse2fine.{_HOME[name]}"), name)
