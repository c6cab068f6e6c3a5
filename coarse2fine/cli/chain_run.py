"""What ``c2f-pretrain --chain`` does: one stage after the other, each in a folder of its own."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from coarse2fine.cli.chain import Stage, domains_of, images_of, load_chain
from coarse2fine.cli.finetune import build_parser as build_task_parser
from coarse2fine.errors import ConfigError
from coarse2fine.pretrain.weights import NNUNET, WEIGHTS
from coarse2fine.system.terminal import plain

TASK = "task"
SHARED = ("plans", "model", "configuration", "seed", "device")
"""Options of the command line that a task takes, too."""
Run = Callable[[argparse.Namespace, Console], None]


def run_chain(
    options: argparse.Namespace, parser: argparse.ArgumentParser, pretrain: Run, finetune: Run, console: Console
) -> None:
    """Run all stages; those that are finished are not run again, and one that has changed is refused.

    Args:
        options: Of the command line: what stages do not say themselves.
        parser: Of the command.
        pretrain: Runs one pretraining.
        finetune: Runs a fine-tuning.
        console: For what there is to tell.

    Raises:
        C2FError: If the chain is not valid, a stage lacks something, or its folder holds another pretraining.
    """
    task_parser = build_task_parser()
    chain = load_chain(options.chain, parser, task_parser)
    given = domains_of(options.domain)
    stages = [_namespace(options, stage, images_of(stage, chain, given)) for stage in chain.stages]
    weights: Path | None = options.weights
    for number, (stage, chosen) in enumerate(zip(chain.stages, stages, strict=True), 1):
        chosen.weights, chosen.output = weights, options.output / f"{number}-{stage.name}"
        console.print(f"stage {number} of {len(stages)}: {plain(stage.name)}", soft_wrap=True)
        pretrain(chosen, console)
        weights = chosen.output / WEIGHTS
    if isinstance(chain.task, str):
        console.print("after the last stage:", soft_wrap=True)
        console.print(task_command(chain.task, chosen.output), soft_wrap=True)
    elif chain.task is not None:
        console.print("task:", soft_wrap=True)
        task = _task_options(options, chain.task, task_parser)
        task.weights, task.output = weights, options.output / TASK
        finetune(task, console)


def task_command(text: str, folder: Path) -> str:
    """The chain's last command, with the files of its last stage."""
    for mark, file in (("{weights}", folder / WEIGHTS), ("{nnunet}", folder / NNUNET)):
        text = text.replace(mark, shlex.quote(str(file)))
    return plain(text)


def _task_options(
    options: argparse.Namespace, task: Mapping[str, Any], parser: argparse.ArgumentParser
) -> argparse.Namespace:
    """The options of the fine-tuning: its own, the network and device of the command line, else defaults."""
    defaults = {action.dest: action.default for action in parser._actions if action.option_strings}
    shared = {name: getattr(options, name) for name in SHARED}
    if "plans" in task or "model" in task:  # of which there is one
        shared["plans"] = shared["model"] = None
    return argparse.Namespace(**{**defaults, **shared, **task})


def _namespace(options: argparse.Namespace, stage: Stage, images: Path | None) -> argparse.Namespace:
    """The options of a stage: its own, else those of the command line.

    Raises:
        ConfigError: If it has no images, or no network.
    """
    chosen = argparse.Namespace(**{**vars(options), **stage.options})
    if "plans" in stage.options or "model" in stage.options:  # of which there is one
        chosen.plans, chosen.model = stage.options.get("plans"), stage.options.get("model")
    chosen.images = images or chosen.images
    if chosen.images is None:
        raise ConfigError(
            f"the stage {stage.name} has no images",
            "Give a folder of images to all stages that name none: --images DIR.",
        )
    if chosen.plans is None and chosen.model is None and getattr(chosen, "network", None) != "vit":
        raise ConfigError(
            f"the stage {stage.name} has no network", "Give plans to all stages that name none: --plans FILE."
        )
    return chosen
