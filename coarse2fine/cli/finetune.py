"""``c2f-finetune``: its options. What it runs is imported when they are known."""

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


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="c2f-finetune",
        description="Let a network, pretrained or not, learn from labelled pictures or volumes, and measure it on "
        "patients that were held out. The same command goes on where it was cut off.",
        epilog="Example: c2f-finetune --table table.csv --classes finding --weights pretrained/weights.safetensors "
        "--share 0.1 -o tuned",
    )
    _add_data(parser)
    _add_network(parser)
    _add_training(parser)
    return add_common_options(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data").add_argument
    add(
        "--table",
        type=Path,
        metavar="FILE",
        help="CSV of pictures, or with plans of a 3D configuration of volumes, with columns file, patient, and perhaps "
        "split (train, val, test)",
    )
    add(
        "--images", type=Path, metavar="DIR", help="folder of the table's files (default: images beside it, or its own)"
    )
    add("--labels", metavar="A,B", help="columns of the table with 0 and 1, each a label by itself")
    add("--classes", metavar="COLUMN", help="column of the table with one class for each image")
    add("--masks", type=Path, metavar="DIR", help="masks of the table's pictures, named as these: segment them")
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="nnU-Net's raw data (imagesTr, labelsTr, dataset.json): segment volumes",
    )
    add("--share", type=float, default=1.0, metavar="S", help="share of patients whose labels are used (%(default)s)")
    add(
        "--test-share",
        type=float,
        default=0.2,
        metavar="S",
        help="share of patients that are held out if there is no column split, nor imagesTs (%(default)s)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder of weights and measures"
    )


def _add_network(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "network", "a vision transformer, or with --plans or --model nnU-Net's"
    ).add_argument
    add("--weights", type=Path, metavar="FILE", help="begin with the weights.safetensors of a pretraining")
    add("--plans", type=Path, metavar="FILE", help="plans.json, or nnUNetPlans.json of preprocessed data")
    add("--model", type=Path, metavar="DIR", help="model folder, whose plans are taken")
    add("-c", "--configuration", default="3d_fullres", metavar="NAME", help="configuration of the plans (%(default)s)")
    add(
        "--network",
        choices=("nnunet", "vit"),
        help="vit: a transformer even with plans, which say how volumes are seen",
    )
    add("--size", type=int, nargs="+", metavar="N", help="of what a transformer sees (224; that of --weights or plans)")
    new = "of a transformer without --weights"
    add("--patch", type=int, nargs="+", metavar="N", help=f"{new}: edges of patches (at most 16 in 2D, 8 in 3D)")
    for name, meant, default in (("width", "numbers of a token", 384), ("depth", "blocks", 12), ("heads", "heads", 6)):
        add(f"--{name}", type=int, metavar="N", help=f"{new}: {meant} ({default})")


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training").add_argument
    add("--frozen", action="store_true", help="only the head learns: a probe of what the network knows")
    add(
        "--layer-decay",
        type=float,
        metavar="D",
        help="factor of the rate from layer to layer (0.65 with --weights of a transformer, else 1)",
    )
    add(
        "--drop-path",
        type=float,
        default=0.1,
        metavar="P",
        help="chance to skip a transformer's last block (%(default)s)",
    )
    add("--augment", metavar="POLICY", help="as rand-m6-mstd0.5-inc1, the default of pictures; none is that of volumes")
    add(
        "--mirror",
        metavar="AXES",
        help="mirror half of the images along axes, such as 1: left and right of a picture (none)",
    )
    add("--steps", type=int, default=3000, metavar="N", help="training steps (%(default)s)")
    add("--minutes", type=float, metavar="M", help="end after this time, if steps are not done earlier")
    add("--batch", type=int, metavar="N", help="images in a step (32, or the plans' batch size)")
    add(
        "--rate",
        type=float,
        metavar="R",
        help="highest learning rate (2.5e-4 for 256 images a step; for nnU-Net's 1e-3 with --weights, else 1e-2)",
    )
    add(
        "--warm-up",
        type=float,
        metavar="S",
        help="share of the steps in which the rate rises (0.067; 0.1 for nnU-Net's)",
    )
    add("--seed", type=int, default=0, help="fixes the result, the patients held out and those of a share")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)

    def action(console: Console) -> None:
        from coarse2fine.cli.finetune_run import finetune

        finetune(options, console)

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
