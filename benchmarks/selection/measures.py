"""What ``assign.py`` needs that takes long: instances of the test case, trained agents, and real runs.

Real runs tell what instances cannot: what the order of regions does to the result (crops that share a canvas share its
statistics), and how long an agent takes in a whole run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from assignnet import NO_FEATURES, Roi, RoiTree
from assignnet.choice.rules import in_space_order
from assignnet.learn.agent import save_agent
from assignnet.value.instance import Instance
from assignnet.value.synthetic import synthetic_instance
from benchmarks.common.machine import ROOT, forget, relative
from benchmarks.common.registry import MissingDataError, choose_case, config_file, find_model, load_dataset
from canvas import share_filled
from coarse2fine.cli import train as train_cli
from coarse2fine.cli.train_run import RATES, STEPS
from coarse2fine.coarse.heatmap import CoarseStage, predict_heatmap
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.reader import load_config
from coarse2fine.config.schema import Config
from coarse2fine.errors import C2FError
from coarse2fine.evaluation.masks import dice, iou, leave_out, mean_over_labels
from coarse2fine.fine.segment import FineStage, segment_boxes
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.io import LabelledCase, find_cases, read_volume
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.selection.features import FeatureSettings
from coarse2fine.selection.selector import Selector, find_selector, find_tree
from coarse2fine.system.timing import Run, RunClock, Stage
from coarse2fine.training.dataset import build_instances, cached_instances, how_made
from coarse2fine.training.outcomes import OutcomeSettings

ORDER_WEIGHT = 0.05
"""Lambda at which orders are compared."""
NORMS = ("case", "canvas")
PACKINGS = ("same_scale", "same_size")
"""Same-scale packing sorts crops by size, so there the order has no effect."""
RANDOM_ORDERS = 3
ABLATIONS = {
    "start_label": ["assign.start_label=true"],
    "network": ["assign.features=coarse"],
    "network_mean": ["assign.features=coarse", "assign.pooling_mode=mean"],
    "network_global": ["assign.features=coarse", "assign.global_info=true"],
}
"""What an agent is trained with besides the defaults: the 7 numbers of each region, without a network's features."""
KINDS = ("policy", "gains")
MADE_UP, QUICK_MADE_UP, LEARNED_SIZES = (40, (5, 500)), (5, (5, 50)), (5, 100)
"""Held-out synthetic instances and least and greatest number of regions in them; regions in those to learn from."""
MADE_UP_FEATURES = 4
HELD_OUT, LEARNED = 1, 2
"""First words of the seeds of synthetic instances, so that no two of the sets are alike."""


@dataclass(frozen=True, slots=True)
class Training:
    """An agent to be trained.

    Attributes:
        kind: As in ``AgentCard``.
        seed: Fixes it.
        ablation: Name in ``ABLATIONS``; empty for none.
    """

    kind: str
    seed: int
    ablation: str = ""

    @property
    def name(self) -> str:
        """Of the agent's folder."""
        return "-".join(filter(None, (self.kind, self.ablation, f"seed{self.seed}")))


@dataclass(frozen=True, slots=True, eq=False)
class RealCase:
    """A test case with the models that it is segmented with.

    Attributes:
        name: Of the data set.
        labelled: Files of the test case.
        pipeline: Models and settings; chooses by the configured rule.
        coarse: The coarse model.
    """

    name: str
    labelled: LabelledCase
    pipeline: Pipeline
    coarse: Model

    def config(self, agent: str | None = None, weight: float | None = None) -> Config:
        """The settings, with another agent or lambda put in."""
        config = self.pipeline.config
        changes: dict[str, Any] = {} if agent is None else {"agent": agent}
        changes |= {} if weight is None else {"weight": weight}
        return config.model_copy(update={"assign": config.assign.model_copy(update=changes)})

    def settings(self) -> dict[str, Any]:
        """All settings, ready for JSON; models relative to the repository."""
        config = self.pipeline.config.to_dict()
        for stage in ("coarse", "fine"):
            config[stage]["model"] = relative(Path(config[stage]["model"]))
        return config

    def selector(self, agent: str, weight: float | None = None) -> Selector:
        """A rule or the agent of a folder.

        Raises:
            ModelError: If the agent cannot be read, or was trained for something else than this case.
        """
        return find_selector(self.config(agent, weight), self.pipeline.stage.plan, self.coarse, self.pipeline.fine)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the coarse stage makes of a case.

    Attributes:
        image: First channel of the transposed, cropped volume.
        truth: Its true labels, same shape.
        tree: The regions, on the working grid.
        scene: The working grid and the coarse result.
    """

    image: NDArray[Any]
    truth: NDArray[Any]
    tree: RoiTree
    scene: Scene


def open_case(name: str, models: str, overrides: Sequence[str], data: Path | None = None) -> RealCase:
    """Load the models of a data set and find its test case.

    Args:
        name: Of the data set.
        models: Where models lie, see ``find_model``.
        overrides: Settings that win over those of ``benchmarks/configs``.
        data: Where the data lie, if not where the data set's file says.

    Raises:
        MissingDataError: If data or models are not there.
    """
    dataset = load_dataset(name)
    case = choose_case(dataset, data=data)
    if case.image is None:
        raise MissingDataError(f"'{name}' has references only, no images", "Choose another data set.")
    folders = model_folders(name, models)
    settings = [f"{stage}.model={json.dumps(str(folder))}" for stage, folder in folders.items()]
    # A rule, so that nothing is missing where agents have yet to be trained.
    config = load_config(config_file(dataset), [*settings, "assign.agent=greedy", *overrides])
    pipeline = Pipeline.from_config(config)
    if pipeline.coarse is None:
        raise MissingDataError(f"{name} has no coarse model", "Leave mode as it is.")
    files = find_cases(case.image, pipeline.fine.channels)[0].files
    return RealCase(name, LabelledCase(case.name, files, case.reference), pipeline, pipeline.coarse)


def model_folders(name: str, models: str) -> dict[str, Path]:
    """The folders of a data set's two models, by stage; errors as ``find_model``."""
    dataset = load_dataset(name)
    return {stage: find_model(dataset, stage, models) for stage in ("coarse", "fine")}


def held_out(real: RealCase, features: FeatureSettings, settings: OutcomeSettings, work: Path) -> list[Instance]:
    """Instances of the test case, built once: first the whole case with the configured thresholds.

    Raises:
        MissingDataError: If the configured thresholds find nothing in it.
    """
    config, coarse, fine = real.pipeline.config, real.coarse, real.pipeline.fine
    made = how_made([real.labelled], coarse, fine, config, features, settings, 0)
    path = work / f"{real.name}-{features.source}-{features.downsample_mode}-{features.pooling_mode}.h5"

    def build() -> list[Instance]:
        return build_instances([real.labelled], coarse, fine, config, features, settings, split=False)

    instances = cached_instances(path, made, build)
    if not instances or not instances[0].name.endswith("/whole/0/0"):
        raise MissingDataError(f"{real.labelled.name}: no regions to choose from", "Lower rois.threshold.")
    return instances


def look(real: RealCase) -> Seen:
    """Run the coarse stage."""
    pipeline, fine = real.pipeline, real.pipeline.fine
    volume = read_volume(list(real.labelled.images))
    coarse_view = view_volume(volume, real.coarse, pipeline.config.coarse.spacing)
    coarse = predict_heatmap(CoarseStage(real.coarse, fine, pipeline.config.coarse, keep_features=True), coarse_view)
    view = view_volume(volume, fine)
    truth = read_volume([real.labelled.labels]).channels[0].astype(fine.labels.dtype)
    image, truth = (np.asarray(view.turn.array(array))[view.crop.slices] for array in (volume.channels[0], truth))
    return Seen(
        image, truth, find_tree(pipeline.config, pipeline.stage.plan, coarse.heatmap, view), Scene(view, coarse)
    )


def choose(real: RealCase, seen: Seen, agent: str, weight: float) -> tuple[Roi, ...]:
    """What a rule or agent chooses for the case."""
    return real.selector(agent, weight).choose(seen.tree, seen.scene, real.pipeline.fine, RunClock())


def compare_orders(real: RealCase, seen: Seen, agent: str) -> list[dict[str, Any]]:
    """The same regions in different orders: one real run of the fine stage for each.

    Args:
        real: The case.
        seen: Its regions.
        agent: Chooses them, and one of the orders.
    """
    chosen = choose(real, seen, agent, ORDER_WEIGHT)
    orders = {"agent": chosen, "space": in_space_order(chosen, real.pipeline.stage.plan.slot)}
    for seed in range(RANDOM_ORDERS):
        shuffled = np.random.default_rng(seed).permutation(len(chosen))
        orders[f"random-{seed}"] = tuple(chosen[index] for index in shuffled)
    return [
        {"packing": packing, "norm": norm, "order": name, "lambda": ORDER_WEIGHT}
        | _segment(real, seen, order, {"packing": packing, "norm": norm})
        for packing in PACKINGS
        for norm in NORMS
        for name, order in orders.items()
    ]


def _segment(real: RealCase, seen: Seen, order: Sequence[Roi], changes: Mapping[str, str]) -> dict[str, Any]:
    """One run of the fine stage, with other settings of the canvas."""
    fine, config = real.pipeline.fine, real.pipeline.config
    config = config.model_copy(update={"canvas": config.canvas.model_copy(update=changes)})
    boxes, stage = [roi.box for roi in order], FineStage.of(fine, config)
    forget()
    run = Run()
    clock = run.clock
    with clock.time(Stage.FINE):
        writer = LabelWriter(seen.scene.view, fine)
        result = segment_boxes(stage, seen.scene, boxes, writer, run)
        writer.finish()
    foreground, ignore = fine.labels.foreground, fine.labels.ignore
    labels, truth = (leave_out(one, seen.truth, ignore) for one in (writer.labels, seen.truth))
    return {
        "dice": mean_over_labels(dice, labels, truth, foreground),
        "iou": mean_over_labels(iou, labels, truth, foreground),
        "boxes": len(boxes),
        "canvases": len(result.canvases),
        "fill": share_filled(result.canvases),
        "fine_s": clock.seconds[Stage.FINE],
        "network_s": clock.seconds[Stage.FINE.passes],
    }


def agent_share(real: RealCase, agents: Mapping[str, str], repeat: int) -> dict[str, dict[str, Any]]:
    """How much of a real run, from file to file, choosing takes; medians over runs in which agents take turns.

    Args:
        real: The case.
        agents: Rules or folders of agents, by name.
        repeat: Runs of each.
    """
    pipelines = {name: Pipeline(real.config(agent), real.coarse, real.pipeline.fine) for name, agent in agents.items()}
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in pipelines}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(repeat):
            for name, pipeline in pipelines.items():
                forget()
                report = pipeline.run_files(real.labelled.images, Path(folder) / "labels.nii.gz").report
                runs[name].append((report.timing_s.assign, report.timing_s.total))
    return {
        name: {
            "assign_s": statistics.median(assign for assign, _ in times),
            "total_s": statistics.median(total for _, total in times),
            "share": statistics.median(assign / total for assign, total in times),
            "runs": [{"assign_s": assign, "total_s": total} for assign, total in times],
        }
        for name, times in runs.items()
    }


def made_up(count: int, sizes: tuple[int, int], *seed: int) -> list[Instance]:
    """Synthetic instances, the smallest first."""
    random = np.random.default_rng(seed)
    regions = np.geomspace(*sizes, count).round().astype(int)
    return [synthetic_instance(random, int(number), features=MADE_UP_FEATURES) for number in regions]


def train_all(options: argparse.Namespace, console: Console) -> list[str]:
    """Train the agents that are missing; returns the commands of all that were wanted."""
    wanted = [Training(kind, seed) for seed in options.seeds for kind in KINDS] if options.train else []
    wanted += [Training("policy", 0, name) for name in ABLATIONS] if options.ablations else []
    if options.dataset == "synthetic":  # without a volume there is nothing to pool, nor features of it
        wanted = [one for one in wanted if one.ablation not in ("network_global", "network_mean")]
    commands = []
    for training in wanted:
        folder = options.agents / options.dataset / training.name
        arguments = [] if options.dataset == "synthetic" else train_arguments(options, training, folder)
        commands.append(shlex.join(["c2f-train", *arguments]) if arguments else f"synthetic {training.name}")
        if (folder / "agent.json").exists():
            console.print(f"{folder} is there already: not trained again", highlight=False, soft_wrap=True)
            continue
        console.print(f"training {training.name}", highlight=False)
        if not arguments:
            train_made_up(options, training, folder)
            continue
        if train_cli.main(arguments):
            raise C2FError(f"the training of {folder} failed", "The message above says why.")
    return commands


def train_arguments(options: argparse.Namespace, training: Training, folder: Path) -> list[str]:
    """What a user passes to ``c2f-train`` for the same agent; errors as ``find_model``."""
    dataset = load_dataset(options.dataset)
    arguments = ["-c", relative_here(Path(str(config_file(dataset))))]
    arguments += ["--cases", relative_here(options.data or ROOT / dataset.data), "-o", relative_here(folder)]
    for stage, model in model_folders(options.dataset, options.models).items():
        arguments += [f"--{stage}-model", relative_here(model)]
    arguments += ["--kind", training.kind, "--metric", options.metric, "--seed", str(training.seed)]
    arguments += ["--instances", relative_here(folder.parent / instances_of(training))]
    for setting in ["assign.agent=greedy", *options.overrides, *ABLATIONS.get(training.ablation, [])]:
        arguments += ["--set", setting]
    if options.quick:
        arguments += ["--steps", "1", "--warm-start", "1", "--variants", "1", "--regions", "1"]
    return arguments


def relative_here(path: Path) -> str:
    """A path as seen from the current folder."""
    return Path(os.path.relpath(path)).as_posix()


def instances_of(training: Training) -> str:
    """Name of the file of training instances, which trainings with the same features of regions share."""
    return f"instances-{training.ablation if training.ablation.startswith('network') else 'plain'}.h5"


def train_made_up(options: argparse.Namespace, training: Training, folder: Path) -> None:
    """Train on synthetic instances."""
    from assignnet.learn.train import TrainSettings, train_agent

    few = options.quick
    learn = made_up(6 if few else 200, (5, 8) if few else LEARNED_SIZES, LEARNED, training.seed)
    held = made_up(2 if few else 20, (5, 8) if few else LEARNED_SIZES, LEARNED, training.seed, 1)
    settings = TrainSettings(
        kind="policy" if training.kind == "policy" else "gains",
        steps=1 if few else STEPS[training.kind],
        seed=training.seed,
        start_label=training.ablation == "start_label",
        learning_rate=RATES[training.kind],
        warm_start=1 if few else 60,
    )
    if training.ablation != "network":
        learn, held = ([replace(one, features=NO_FEATURES) for one in part] for part in (learn, held))
    features = {"source": "coarse" if training.ablation == "network" else "none", "fingerprint": None}
    about = {"instances": {"train": len(learn), "validation": len(held)}, "made": {"synthetic": True}}
    save_agent(folder, train_agent(learn, held, settings, folder / "training", features=features, about=about))
