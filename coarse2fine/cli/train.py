"""``c2f-train``: its options. What it runs is imported when they are known."""

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
        prog="c2f-train",
        description="Train an agent that chooses which regions the fine nnU-Net segments.",
        epilog="Example: c2f-train -c em.yaml --cases Dataset101_VNCMito -o agent; use it with assign.agent=agent",
    )
    add = parser.add_argument
    add("-c", "--config", help="YAML file, or the name of a shipped one, as for c2f-infer")
    add("--cases", type=Path, required=True, metavar="DIR", help="nnU-Net raw data: imagesTr and labelsTr")
    add("-o", "--output", type=Path, required=True, metavar="AGENT", help="folder of the agent")
    add("--coarse-model", type=Path, metavar="DIR", help="folder of the low-resolution nnU-Net")
    add("--fine-model", type=Path, metavar="DIR", help="folder of the full-resolution nnU-Net")
    add("--kind", choices=("policy", "gains"), default="gains", help="reinforcement learning, or learned gains")
    add("--metric", choices=("dice", "iou"), default="dice", help="quality that is traded against time")
    add("--steps", type=int, help="choices that the policy learns from, or passes over the data for gains")
    add("--seed", type=int, default=0, help="fixes the result")
    add("--lambdas", type=float, nargs=2, default=(0.01, 0.5), metavar=("LOW", "HIGH"), help="range of lambda to learn")
    add("--warm-start", type=int, default=60, metavar="N", help="policy: passes of imitating the oracle first")
    add("--order", type=float, default=0.0, metavar="W", help="policy: weight of neighbours following each other")
    add("--anytime", action="store_true", help="learn which regions come first under c2f-infer's --deadline")
    add(
        "--instances", type=Path, metavar="FILE", help="where instances are kept (default: AGENT/training/instances.h5)"
    )
    add("--variants", type=int, default=10, help="trees per case, with perturbed thresholds")
    add("--regions", type=int, default=8, help="random sub-volumes per tree")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override a setting")
    add("--device", help="auto, cpu, cuda, cuda:N or mps")
    add("--overwrite", action="store_true", help="replace a finished agent; an unfinished training is resumed anyway")
    add("--trust-checkpoint", action="store_true", help="let checkpoints run code while they are loaded")
    parser.set_defaults(mode=None)
    return add_common_options(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)

    def action(console: Console) -> None:
        from coarse2fine.cli.train_run import train

        train(options, console)

    return guarded(action)


if __name__ == "__main__":
    sys.exit(main())
