"""What ``c2f-train`` does: labelled cases and two models in, an agent out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import inf, isnan
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table

from assignnet import RULES
from assignnet.learn.agent import Agent, save_agent
from assignnet.learn.train import TrainSettings, checked_weights, curves_are_kept, train_agent
from assignnet.value.anytime import ORDERS, mean_area
from assignnet.value.evaluate import evaluate, oracles, summarise
from assignnet.value.instance import Instance
from coarse2fine.cli.bars import show_bars
from coarse2fine.cli.infer_run import configure
from coarse2fine.config.schema import Config
from coarse2fine.errors import C2FError, ConfigError, OutputError
from coarse2fine.io import check_writable, find_labelled_cases, make_own
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline
from coarse2fine.report import versions
from coarse2fine.selection.features import FeatureSettings, feature_card
from coarse2fine.selection.selector import feature_settings
from coarse2fine.system.memory import keep_freed_memory
from coarse2fine.training.dataset import (
    build_instances,
    cached_instances,
    how_made,
    split_instances,
)
from coarse2fine.training.outcomes import OutcomeSettings

STEPS = {"policy": 40_000, "gains": 30}
RATES = {"policy": 3e-4, "gains": 1e-3}
"""Learning rates; reinforcement learning must not undo what imitation has learned."""
BUILD_SEED = 0
"""Of the instances, so that trainings with different seeds differ in nothing else, and can share them."""


def train(options: argparse.Namespace, console: Console) -> None:
    """Build or reuse instances, train, evaluate, write the agent.

    Raises:
        C2FError: If something is missing or does not fit.
    """
    keep_freed_memory()
    config = rule_config(options)
    settings = train_settings(options, start_label=config.assign.start_label)
    prepare_output(options.output, options.overwrite)
    if settings.kind == "policy" and not curves_are_kept():
        console.print("the training's curves are not kept: TensorBoard is not installed", style="yellow")
        console.print("  Install it: pip install tensorboard", style="yellow")
    if options.instances:  # a slip of the pen must not replace an image, nor be noticed only when all is built
        check_writable(options.instances, True, (".h5",))
    pipeline = Pipeline.from_config(config, trust_checkpoint=options.trust_checkpoint)
    if options.anytime:
        pipeline = with_coarse_outside(pipeline)
    if pipeline.coarse is None:
        raise ConfigError("mode one-stage has nothing to choose", "Use mode: accelerated, with a coarse model.")
    features = feature_settings(pipeline.config)
    work = options.output / "training"
    with show_bars(console, width=10, remaining=True, transient=False) as bars:
        made, instances = find_instances(options, pipeline, pipeline.coarse, features, work, bars)
        learn, held = split_instances(instances)
        check_instances(options.cases, learn, held, settings, console)
        task = bars.add_task("learn", total=settings.steps)
        try:
            agent = train_agent(
                learn,
                held,
                settings,
                work,
                features=feature_card(features, pipeline.coarse, pipeline.fine, pipeline.config.coarse.foreground),
                about={"instances": {"train": len(learn), "validation": len(held)}, "made": made}
                | {"versions": versions()},
                progress=lambda done, total: bars.update(task, completed=done, total=total),
            )
        except ValueError as error:
            raise C2FError(str(error), "Then run the same command again.") from error
    table, metrics = (compare_orders if options.anytime else compare)(agent, held, settings)
    save_agent(options.output, agent.with_metrics(metrics))
    (work / "checkpoint.pt").unlink(missing_ok=True)  # or --overwrite would find the training finished
    console.print(table)
    console.print(f"written: {options.output}; use it with --set assign.agent={options.output}", soft_wrap=True)


def rule_config(options: argparse.Namespace) -> Config:
    """The configuration, with a rule in the place of the agent that is yet to be trained."""
    options.overrides = [*options.overrides, "assign.agent=all_children"]
    return configure(options)


def find_instances(
    options: argparse.Namespace, pipeline: Pipeline, coarse: Model, features: FeatureSettings, work: Path, bars: Bars
) -> tuple[dict[str, Any], list[Instance]]:
    """How the instances were made, and the instances, built now or earlier."""
    config, fine = pipeline.config, pipeline.fine
    settings = OutcomeSettings(variants=options.variants, regions=options.regions)
    cases = find_labelled_cases(options.cases, fine.channels, fine.reader)
    task = bars.add_task("instances", total=len(cases))
    made = how_made(cases, coarse, fine, config, features, settings, BUILD_SEED)

    def build() -> list[Instance]:
        return build_instances(
            cases,
            coarse,
            fine,
            config,
            features,
            settings,
            seed=BUILD_SEED,
            progress=lambda done, total: bars.update(task, completed=done),
        )

    instances = cached_instances(options.instances or work / "instances.h5", made, build)
    bars.update(task, completed=len(cases))
    return made, instances


def check_instances(
    cases: Path, learn: Sequence[Instance], held: Sequence[Instance], settings: TrainSettings, console: Console
) -> None:
    """Make sure that there is something to learn from, and tell what is not learned from.

    Raises:
        C2FError: If not.
    """
    if not learn or not held:
        raise C2FError(
            f"{cases}: {len(learn)} instances to learn from and {len(held)} to validate on",
            "Add labelled cases, or change rois.threshold: trees count that have regions, "
            f"but no more than {OutcomeSettings().most} of them.",
        )
    if settings.kind != "policy":
        return
    large = sum(len(instance.tree.rois) > settings.most for instance in learn)
    if not large:
        return
    said = (
        f"{large} of {len(learn)} instances to learn from have more than {settings.most} regions, too many for a policy"
    )
    remedy = "Use --kind gains, which learns from larger ones, too; these instances are kept for it."
    if large == len(learn):
        raise C2FError(f"{cases}: {said}", remedy)
    console.print(f"{said}: it learns from the others", style="yellow", soft_wrap=True)


def with_coarse_outside(pipeline: Pipeline) -> Pipeline:
    """The same, but coarse labels stand where nothing is segmented, as under a deadline; where these mean the same."""
    coarse, fine, config = pipeline.coarse, pipeline.fine, pipeline.config
    if coarse is None or not coarse.labels.agree_with(fine.labels):
        return pipeline
    fine_stage = config.fine.model_copy(update={"outside": "coarse"})
    return Pipeline(config.model_copy(update={"fine": fine_stage}), coarse, fine)


def compare_orders(agent: Agent, held: Sequence[Instance], settings: TrainSettings) -> tuple[Table, dict[str, float]]:
    """Area under quality against time on the validation instances, beside rules; and the agent's for its card."""
    table = Table(title=f"area under {settings.metric} against time, {len(held)} validation instances")
    table.add_column("order")
    table.add_column("area", justify="right")
    areas = {"this agent": mean_area(agent, held, settings.metric)}
    areas |= {name: mean_area(order, held, settings.metric) for name, order in ORDERS.items()}
    for name, area in areas.items():
        table.add_row(name, f"{area:.4f}")
    return table, {"anytime_area": areas["this agent"]}


def compare(agent: Agent, held: Sequence[Instance], settings: TrainSettings) -> tuple[Table, dict[str, float]]:
    """The agent beside the rules, on the instances held out for validation; and its figures for its card."""
    weights = checked_weights(settings)
    known = oracles(held, settings.metric, weights)
    table = Table(title=f"share of the oracle's reward, {len(held)} validation instances", title_justify="left")
    table.add_column("lambda")
    for weight in weights:
        table.add_column(f"{weight:.3g}", justify="right")
    metrics: dict[str, float] = {}
    for name, assigner in {"this agent": agent, **RULES}.items():
        found = summarise(evaluate(assigner, held, settings.metric, weights, known=known))
        # Where the best is to do nothing there is no share, and NaN has no place in a card.
        shares = {weight: found[weight].oracle_fraction for weight in weights}
        table.add_row(name, *("-" if isnan(share) else f"{share:.3f}" for share in shares.values()))
        if assigner is agent:
            metrics = {
                f"oracle_fraction_at_{weight:.3g}": share for weight, share in shares.items() if not isnan(share)
            }
    return table, metrics


def prepare_output(folder: Path, overwrite: bool) -> None:
    """Check that the agent can be written.

    Raises:
        OutputError: If not, if there is one, or if the folder of an unfinished training is not ours alone.
    """
    if (folder / "agent.json").exists() and not overwrite:
        raise OutputError(f"{folder} holds an agent", "Choose another folder, or add --overwrite.")
    try:
        make_own(folder, private=False)
        make_own(folder / "training")  # what is found there is trusted and gone on with
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror}", "Choose another folder.") from error


def train_settings(options: argparse.Namespace, *, start_label: bool) -> TrainSettings:
    """The training's settings.

    Args:
        options: From the command line.
        start_label: From the configuration.

    Raises:
        ConfigError: If a value is out of its range.
    """
    low, high = options.lambdas
    if not 0 < low < high < inf:
        raise ConfigError(f"--lambdas {low} {high} is no range", "Give two positive numbers, the lower one first.")
    steps = options.steps if options.steps is not None else STEPS[options.kind]
    for name, value in (("--steps", steps), ("--variants", options.variants)):
        if value < 1:
            raise ConfigError(f"{name} is {value}", "It must be at least 1.")
    if not 0 <= options.seed < 1 << 32:
        raise ConfigError(f"--seed is {options.seed}", "It must be a whole number from 0 to 4294967295.")
    return TrainSettings(
        kind=options.kind,
        metric=options.metric,
        weights=(low, high),
        steps=steps,
        seed=options.seed,
        learning_rate=RATES[options.kind],
        start_label=start_label,
        order=options.order,
        warm_start=options.warm_start,
        anytime=options.anytime,
    )
