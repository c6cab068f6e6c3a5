"""``c2f-explain``: its options. What it runs is imported when options are known."""

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

_NEEDED = ("input", "model", "label")
_OF_BOTH = {"statistics", "output", "overwrite"}


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="c2f-explain",
        description="Show what a trained nnU-Net model looks at when it finds a label: a map of a volume, by HiResCAM "
        "or Grad-CAM, from 0 to 1, in the volume's own geometry, or of a picture. Or compare such maps with labels.",
        epilog="Example: c2f-explain -i scan.nii.gz -o map.nii.gz --model FINE --label lesion --png map.png",
    )
    add = parser.add_argument
    add("-i", "--input", help="one volume, or the folder with all of its channels or of a DICOM series; or a picture")
    add(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the map (of a picture .png, 16 bits), or the table of --statistics (.csv)",
    )
    add(
        "--model",
        type=Path,
        metavar="DIR",
        help="folder of a trained nnU-Net (3d_fullres, 3d_lowres or 2d), or one that c2f-finetune made",
    )
    add("--label", metavar="NAME", help="the label or region that is explained, as in the model's dataset.json")
    add(
        "--layer",
        metavar="NAME",
        help="a part of the network, such as encoder.stages.3 (default: the middle stage of the encoder, or the first "
        "block of a transformer)",
    )
    add(
        "--method",
        choices=("hires-cam", "grad-cam"),
        default="hires-cam",
        help="how gradients count: place by place, or by their means, which say little where a network normalises each "
        "of its feature maps, as nnU-Net's do (%(default)s)",
    )
    add(
        "--mask",
        type=Path,
        metavar="LABELS",
        help="explain the voxels that have the label in this file, instead of those in which the model finds it",
    )
    add("--png", type=Path, metavar="FILE", help="draw the slice in which the map is strongest")
    add("--folds", nargs="+", metavar="FOLD", help="folds (default: the numbered ones that are there, else all)")
    add("--checkpoint", default="checkpoint_final.pth", metavar="FILE", help="its name in each fold (%(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps (%(default)s)")
    add("--overwrite", action="store_true", help="replace files that exist")
    add("--trust-checkpoint", action="store_true", help="let checkpoints run code while they are loaded")
    add(
        "--statistics",
        nargs=2,
        type=Path,
        metavar=("MAPS", "LABELS"),
        help="compare maps with labels, two files or folders with files of the same names: how much of a map lies "
        "inside of each label, and whether its maximum does",
    )
    return add_common_options(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    given = [
        name for name, value in vars(options).items() if name not in _OF_BOTH and value != parser.get_default(name)
    ]
    missing = [name for name in _NEEDED if name not in given]
    if options.statistics and given:
        parser.error(f"--statistics compares files that are there: leave out {_listed(given)}")
    if missing and not options.statistics:
        parser.error(f"needed: {_listed(missing)} (or --statistics)")

    def action(console: Console) -> None:
        from coarse2fine.cli.explain_run import run

        run(options, console)

    return guarded(action)


def _listed(names: Sequence[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)


if __name__ == "__main__":
    sys.exit(main())
