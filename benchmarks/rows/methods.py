"""The rows of the benchmark: every way of segmenting a case that is compared, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final

from benchmarks.common.bench import Bench, Effort, count_voxels, run_nnunet, run_ours
from benchmarks.rows.alternatives import METHODS, Given
from coarse2fine.coarse.heatmap import CoarseStage, predict_heatmap
from coarse2fine.io import read_volume, write_labels
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.system.timing import Clock

Method = Callable[[Bench, Path], Effort]
ALONE = ("canvas.enabled=false", "assign.agent=greedy")
"""Trained agents know the costs of one way of packing, and without canvases they are others."""
RESIZE = ("fine.postprocess=resize_only", "canvas.packing=same_size")


@dataclass(frozen=True, slots=True)
class Row:
    """One way of segmenting a case.

    Attributes:
        title: In tables.
        method: Segments the case into a file.
        needs: Roles of the models that it takes.
        ours: Whether it is part of coarse2fine.
    """

    title: str
    method: Method
    needs: tuple[str, ...] = ("coarse", "fine")
    ours: bool = True


def run_alternative(bench: Bench, output: Path, *, name: str) -> Effort:
    """A method that users have today, with our reading, resampling and write-back, from file to file."""
    pipeline, clock = bench.pipeline(), Clock[str]()
    config, fine, coarse_model = pipeline.config, pipeline.fine, bench.model("coarse")
    with count_voxels() as voxels, clock.time("total"):
        volume = read_volume(bench.files)
        with clock.time("coarse"):
            seen = view_volume(volume, coarse_model, config.coarse.spacing)
            coarse = predict_heatmap(CoarseStage(lean(coarse_model), fine, config.coarse), seen)
        with clock.time("fine"):
            view = view_volume(volume, fine)
            given = Given(view, fine, coarse, config.rois.threshold, config.fine.tile_step, config.fine.mirroring)
            looked = METHODS[name](given)
        write_labels(looked.labels, volume.grid, output)
    seconds = clock.seconds
    effort = (seconds["total"], seconds["coarse"], seconds["fine"], looked.network_s)
    return Effort(*effort, dict(voxels), looked.tiles, 1.0)


def _ours(title: str, *overrides: str, fine: str = "fine", needs: tuple[str, ...] = ("coarse", "fine")) -> Row:
    return Row(title, partial(run_ours, overrides=overrides, fine=fine), tuple(dict.fromkeys((*needs, fine))))


def _theirs(title: str, name: str) -> Row:
    return Row(title, partial(run_alternative, name=name), ours=False)


ROWS: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "nnunet": Row("nnU-Net", run_nnunet, ("fine",), ours=False),
        "nnunet_mirroring": Row("nnU-Net, mirrored inputs", partial(run_nnunet, mirroring=True), ("fine",), ours=False),
        "nnunet_step_0.8": Row("nnU-Net, tile step 0.8", partial(run_nnunet, tile_step=0.8), ("fine",), ours=False),
        "one_stage": _ours("one-stage", "mode=one-stage"),
        "small_patch_one_stage": _ours("one-stage, small-patch model", "mode=one-stage", fine="small"),
        "two_stage": _ours("two-stage, native tiles", "mode=two-stage"),
        "all_parents_resize": _ours("all parents, resize", "assign.agent=all_parents", *RESIZE),
        "all_parents_crop_resize": _ours("all parents, crop and resize", "assign.agent=all_parents"),
        "all_children": _ours("all children", "assign.agent=all_children"),
        "greedy": _ours("greedy rule", "assign.agent=greedy"),
        "accelerated": _ours("accelerated"),
        "accelerated_no_canvas": _ours("greedy rule, no canvas", *ALONE),
        "accelerated_norm_case": _ours("accelerated, norm: case", "canvas.norm=case"),
        "accelerated_norm_canvas": _ours("accelerated, norm: canvas", "canvas.norm=canvas"),
        "accelerated_norm_slot": _ours("accelerated, norm: slot", "canvas.norm=slot"),
        "accelerated_mosaic_norm_case": _ours(
            "accelerated, canvas-trained model, norm: case", "canvas.norm=case", fine="mosaic"
        ),
        "accelerated_mosaic_norm_canvas": _ours(
            "accelerated, canvas-trained model, norm: canvas", "canvas.norm=canvas", fine="mosaic"
        ),
        "one_stage_mosaic": _ours("one-stage, canvas-trained model", "mode=one-stage", fine="mosaic"),
        "coarse_only": _theirs("coarse model alone", "coarse_only"),
        "lean_window": _theirs("every tile, lean networks", "lean_window"),
        "crop_foreground": _theirs("crop to the coarse foreground, sliding window", "crop_foreground"),
        "masked_tiles": _theirs("MONAI's inferer on tiles that the coarse mask touches", "masked_tiles"),
        "centre_windows": _theirs("centre windows probed first", "centre_windows"),
        "top_patches": _theirs("top patches by coarse score", "top_patches"),
    }
)  # fmt: skip
"""All rows by name, in the order of tables. Ratios are to ``nnunet``, agreement is with its result."""
BASELINE: Final = "nnunet"
BOUND: Final = "bound"
"""Name of the row that no run made: ``Effort.bound_s`` of ``accelerated``."""
