"""``c2f-prepare``: its options. What it runs is imported when they are known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from coarse2fine.cli.guard import guarded

if TYPE_CHECKING:
    from rich.console import Console


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(
        prog="c2f-prepare",
        description="Make a kit of two nnU-Net models: calibrate on some cases how low the heatmap's threshold must be "
        "for boxes to hold the foreground, and how sure that is.",
        epilog="Example: c2f-prepare --fine-model FINE --coarse-model COARSE --cases CASES -o KIT; "
        "then c2f-infer -i scan.nii.gz -o labels.nii.gz -c KIT",
    )
    add = parser.add_argument
    add("--fine-model", type=Path, metavar="DIR", help="folder of the full-resolution nnU-Net")
    add("--coarse-model", type=Path, metavar="DIR", help="folder of the low-resolution nnU-Net")
    add(
        "--cases",
        type=Path,
        required=True,
        metavar="DIR",
        help="cases that neither model was trained on: imagesTr and labelsTr; or images only, then foreground is what "
        "the fine model finds in one-stage mode",
    )
    add("-o", "--output", type=Path, required=True, metavar="KIT", help="folder of the kit")
    add("-c", "--config", help="settings to start from: YAML file, or the name of a shipped one")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    add("--miss", type=float, default=0.01, metavar="SHARE", help="most foreground outside of boxes (%(default)s)")
    add("--probability", type=float, metavar="P", help="with which a new case keeps that (default: the most possible)")
    add("--confidence", type=float, metavar="C", help="ask that a share P of all cases keep it, with this confidence")
    add("--device", help="auto, cpu, cuda, cuda:N or mps")
    add("--overwrite", action="store_true", help="replace a kit that is there")
    add("--trust-checkpoint", action="store_true", help="let checkpoints run code while they are loaded")
    parser.set_defaults(mode=None)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)

    def action(console: Console) -> None:
        from coarse2fine.cli.prepare_run import prepare

        prepare(options, console)

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
