"""``c2f-pretrain``: its options. What it runs is imported when they are known."""

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


def build_parser(chained: bool = False) -> argparse.ArgumentParser:
    """The command line's options.

    Args:
        chained: Whether stages of a chain may say what else must be given.
    """
    parser = argparse.ArgumentParser(
        prog="c2f-pretrain",
        description="Let the network of nnU-Net's plans, or a vision transformer, learn from images without labels. "
        "The same command goes on where it was cut off.",
        epilog="Examples: c2f-pretrain --plans nnUNetPlans.json --images unlabelled -o pretrained; "
        "c2f-pretrain --network vit --images radiographs --ratio 0.9 -o pretrained",
    )
    _add_network(parser)
    _add_images(parser, required=not chained)
    _add_objectives(parser)
    _add_schedule(parser)
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the weights")
    add("--weights", type=Path, metavar="FILE", help="begin with the weights.safetensors of another pretraining")
    add(
        "--chain",
        type=Path,
        metavar="FILE",
        help="stages one after the other; all other options are what they do not say",
    )
    add("--domain", action="append", default=[], metavar="NAME=DIR", help="images of a domain that a chain names")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    return add_common_options(parser)


def _add_network(parser: argparse.ArgumentParser) -> None:
    plans, add = parser.add_mutually_exclusive_group(), parser.add_argument
    plans.add_argument(
        "--plans", type=Path, metavar="FILE", help="plans.json, or nnUNetPlans.json of preprocessed data"
    )
    plans.add_argument("--model", type=Path, metavar="DIR", help="model folder, whose plans are taken")
    add("-c", "--configuration", default="3d_fullres", metavar="NAME", help="configuration of the plans (%(default)s)")
    add("--network", choices=("plans", "vit"), default="plans", help="nnU-Net's, or a vision transformer (%(default)s)")
    add("--size", type=int, nargs="+", metavar="N", help="of what a transformer sees (224; the plans' patch)")
    add("--patch", type=int, nargs="+", metavar="N", help="edges of its patches (at most 16 in 2D, 8 in 3D)")
    add("--width", type=int, metavar="N", help="numbers of its tokens (384)")
    add("--depth", type=int, metavar="N", help="its blocks (12)")
    add("--heads", type=int, metavar="N", help="of its attention (6)")


def _add_images(parser: argparse.ArgumentParser, *, required: bool) -> None:
    add = parser.add_argument
    what = "volumes in files or stores, or a folder with imagesTr; pictures, or an .npz of them"
    add("--images", type=Path, required=required, metavar="DIR", help=what)
    add("--table", type=Path, metavar="FILE", help="CSV that names pictures (columns file and patient)")
    add(
        "--text",
        metavar="NAME",
        help="the table's column of reports, which mrm, deep-mrm, convirt and refers learn from",
    )
    what = "a vocabulary.json, or an archive of further reports to train one with (.tgz, .tar)"
    add("--vocabulary", type=Path, metavar="FILE", help=what)
    add("--area", type=float, nargs=2, metavar=("MIN", "MAX"), help="of crops of pictures (0.5 1)")
    add("--flip", action="store_true", help="mirror half of the pictures")
    add("--array", metavar="NAME", help="array inside of stores, such as volumes/raw")
    add("--spacing", type=float, nargs=3, metavar=("Z", "Y", "X"), help="voxel size, where stores do not say it")
    add("--unit", help="its unit")
    add("--axes", metavar="LETTERS", help="axes of the array in their order, where stores do not say them: tczyx")
    add("--channel", type=int, metavar="N", help="read only this channel of stores, counted from 0")


def _add_objectives(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = "what to learn; several with +, such as mae+rotation (%(default)s)"
    add("--objective", default="mae", metavar="NAME", help=what)
    add("--weight", action="append", default=[], metavar="NAME=W", help="factor of an objective's loss (1)")
    add("--set", action="append", default=[], metavar="NAME.KEY=VALUE", help="an option that only one objective has")
    add("--mask", choices=("random", "block", "grid"), default="random", help="what is hidden (%(default)s)")
    add("--ratio", type=float, metavar="R", help="share that is hidden (0.75; a grid hides 7/8, in 2D 3/4)")
    what = "longest edge of what is hidden at once (16 voxels; a transformer's patch)"
    add("--block", type=int, metavar="N", help=what)
    add("--centre", type=float, metavar="SIGMA", help="hide and crop more often near the centre, within SIGMA of it")
    add("--norm-pix", action="store_true", help="compare blocks that were normalised each by itself")
    add("--loss-everywhere", action="store_true", help="visible voxels count in the loss, too")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--steps", type=int, default=10_000, metavar="N", help="training steps (%(default)s)")
    add("--minutes", type=float, metavar="M", help="end after this time, if steps are not done earlier")
    add("--batch", type=int, metavar="N", help="crops in a step (the plans' batch size; 64 pictures)")
    what = "highest learning rate (0.01; of transformers 1.5e-4 for each 256 images of a batch)"
    add("--rate", type=float, help=what)
    add("--seed", type=int, default=0, help="fixes the result")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = build_parser(chained=any(word.partition("=")[0] == "--chain" for word in words))
    options = parser.parse_args(words)

    def action(console: Console) -> None:
        from coarse2fine.cli.chain_run import run_chain
        from coarse2fine.cli.pretrain_run import pretrain

        if options.chain is None:
            pretrain(options, console)
        else:
            from coarse2fine.cli.finetune_run import finetune

            run_chain(options, parser, pretrain, finetune, console)

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
