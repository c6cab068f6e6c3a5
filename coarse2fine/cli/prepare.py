"""``c2f-prepare``: its options. What it runs is imported when they are known."""

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
        prog="c2f-prepare",
        description="Make a kit of a trained nnU-Net model and some cases: train a small coarse model, calibrate how "
        "low the heatmap's threshold must be for boxes to hold the foreground, say how sure that is, and find the "
        "fastest settings that lose little.",
        epilog="Example: c2f-prepare --fine-model FINE --cases CASES -o KIT; "
        "then c2f-infer -i scan.nii.gz -o labels.nii.gz -c KIT",
    )
    add = parser.add_argument
    add("--fine-model", type=Path, metavar="DIR", help="folder of the full-resolution nnU-Net")
    add(
        "--coarse-model",
        type=Path,
        metavar="DIR",
        help="folder of a low-resolution nnU-Net that is there; default: train one",
    )
    add(
        "--cases",
        type=Path,
        required=True,
        metavar="DIR",
        help="imagesTr and labelsTr; or images only, then foreground is what the fine model finds in one-stage mode. A "
        "coarse model that is given must not have been trained on them",
    )
    add("-o", "--output", type=Path, required=True, metavar="KIT", help="folder of the kit")
    add("-c", "--config", help="settings to start from: YAML file, or the name of a shipped one")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    add("--miss", type=float, default=0.01, metavar="SHARE", help="most foreground outside of boxes (%(default)s)")
    add("--probability", type=float, metavar="P", help="with which a new case keeps that (default: the most possible)")
    add("--confidence", type=float, metavar="C", help="ask that a share P of all cases keep it, with this confidence")
    add("--loss", type=float, default=0.005, metavar="DICE", help="most Dice lost against one-stage mode (%(default)s)")
    add("--minutes", type=float, default=20.0, metavar="M", help="how long it may take, roughly (%(default)g)")
    add("--no-training", action="store_true", help="let the fine model look coarsely itself instead of training one")
    add("--no-search", action="store_true", help="keep the settings as they are: calibrate the threshold only")
    add("--seed", type=int, default=0, help="fixes the division of cases and the training's random numbers")
    add("--device", help="auto, cpu, cuda, cuda:N or mps")
    add("--overwrite", action="store_true", help="replace a kit that is there")
    add("--trust-checkpoint", action="store_true", help="let checkpoints run code while they are loaded")
    parser.set_defaults(mode=None)
    return add_common_options(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)

    def action(console: Console) -> None:
        from coarse2fine.cli.prepare_run import make_kit

        make_kit(options, console)

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
