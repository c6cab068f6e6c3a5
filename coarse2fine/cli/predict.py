"""``c2f-predict``: ``nnUNetv2_predict`` with a coarse model. What it runs is imported when options are known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coarse2fine.cli.guard import guarded
from coarse2fine.cli.options import add_common_options

if TYPE_CHECKING:
    from rich.console import Console

_IGNORED = "taken so that commands for nnU-Net run; has no effect here"


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="c2f-predict",
        description="What nnUNetv2_predict does, with the same options and files, but faster where there is a kit "
        "(c2f-prepare) or a 3d_lowres model of the same data set. Without either, every voxel is looked at.",
        epilog="Example: c2f-predict -i imagesTs -o predictions -d 4 -c 3d_fullres --kit KIT",
    )
    _add_nnunet_options(parser)
    add = parser.add_argument_group("of coarse2fine").add_argument
    add("--kit", type=Path, metavar="KIT", help="a kit that c2f-prepare made for this model")
    add(
        "--coarse-model", type=Path, metavar="DIR", help="folder of a coarse model (default: 3d_lowres, if it is there)"
    )
    add(
        "--mode",
        choices=("accelerated", "two-stage", "one-stage"),
        help="one-stage is nnU-Net's sliding window (default: the kit's; accelerated if there is a coarse model)",
    )
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    add("--report", type=Path, metavar="FILE", help="write times, boxes, coverage and settings as JSON")
    add(
        "--trust-checkpoint",
        action="store_true",
        help="let checkpoints run code while they are loaded, as nnU-Net does",
    )
    return add_common_options(parser)


def _add_nnunet_options(parser: argparse.ArgumentParser) -> None:
    """Named as nnU-Net names them."""
    add = parser.add_argument_group("of nnUNetv2_predict").add_argument
    add("-i", type=Path, required=True, metavar="FOLDER", help="images, named CASE_0000 and so on")
    add("-o", type=Path, required=True, metavar="FOLDER", help="for labels named after the cases; made if need be")
    add("-d", required=True, metavar="DATASET", help="its number or name, below the folder nnUNet_results")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans (%(default)s)")
    add("-tr", default="nnUNetTrainer", metavar="TRAINER", help="trainer (%(default)s)")
    add("-c", required=True, metavar="CONFIGURATION", help="3d_fullres, 3d_lowres or 3d_cascade_fullres")
    add("-f", nargs="+", type=_fold, metavar="FOLD", help="folds (default: the numbered ones that are there, else all)")
    add("-step_size", type=_step, metavar="S", help="step of the sliding window, as a share of the tile (0.5)")
    add(
        "--disable_tta",
        action="store_true",
        help="do not average over mirrored inputs, which takes eight times as long",
    )
    add("--verbose", action="store_true", help="print a summary of every case")
    add(
        "--save_probabilities", action="store_true", help="also write probabilities, as nnU-Net's ensembling takes them"
    )
    add("--continue_prediction", action="store_true", help="leave out cases whose results are there")
    add("-chk", metavar="FILE", help="checkpoint (default: the kit's, else checkpoint_final.pth)")
    add("-npp", type=int, default=3, metavar="N", help=_IGNORED)
    add("-nps", type=int, default=3, metavar="N", help=_IGNORED)
    add(
        "-prev_stage_predictions",
        type=Path,
        metavar="FOLDER",
        help="labels of a cascade's 3d_lowres model (default: it runs here)",
    )
    add("-num_parts", type=int, default=1, metavar="N", help="how many such commands share the cases (1)")
    add("-part_id", type=int, default=0, metavar="K", help="which of them this is, counted from 0")
    add("-device", "--device", choices=("cpu", "cuda", "mps"), help="default: a GPU where there is one")
    add("--disable_progress_bar", action="store_true", help="as it says")
    add("--not_on_device", action="store_true", help=_IGNORED)


def _fold(text: str) -> int | str:
    if text != "all" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor all")
    return text if text == "all" else int(text)


def _step(text: str) -> float:
    try:
        step = float(text)
    except ValueError:
        step = 0.0
    if not 0 < step <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, at most 1")
    return step


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)

    def action(console: Console) -> None:
        from coarse2fine.cli.predict_run import predict

        predict(options, console)

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
